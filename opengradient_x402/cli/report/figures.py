"""What a report says, as plain data: sums of receipts, each with its records, and what their payments rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from opengradient_x402.cli.groups import day_of, grouped, model_of, run_of
from opengradient_x402.cli.output import amount_of, status_word
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.proofs.findings import Finding, Read, Statement, Undecided
from opengradient_x402.proofs.verification import NOT_ASKED
from opengradient_x402.settlement.channels import SCHEME

UNCHECKED: Final = "unchecked"
RECORDED: Final = "recorded"
BASES: Final = {
    "proven": "A signature by a key whose owner is known covers it.",
    "read": "It was read from a source that the reader chose: a chain through a named node, at a named block, or the "
    "reader's own description of the network.",
    RECORDED: "The file has evidence of it that agrees, and no chain was asked whether the evidence is genuine.",
    "stated": "The payer says so, and nothing else shows it.",
    "undecided": "The evidence is missing or was not reachable. It may be true.",
    "refuted": "The evidence contradicts it.",
    UNCHECKED: "Nothing was checked: the report was made offline, from a ledger.",
}
"""What a statement can rest on, the worst last."""
ASPECTS: Final = {
    "signature": (Statement.SIGNED,),
    "settlement": (Statement.PAID, Statement.NOTHING_TAKEN),
    "enclave": (Statement.ENCLAVE,),
    "data": (Statement.DATA, Statement.NO_DATA),
}
"""What is asked of every record: did the payer sign, is the amount right, did an enclave answer, is that on chain."""


_OF_SUMS: Final = ("proven", "read", RECORDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Calls that belong together, and what they cost. Amounts are atomic units."""

    name: str
    records: tuple[SettlementReceipt, ...]
    by_basis: dict[str, int]
    """What of the amount rests on what: keys are those of `BASES`."""

    @property
    def amount_atomic(self) -> int:
        return sum(self.by_basis.values())

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the questions and of the answers."""
        return (
            sum(record.prompt_tokens or 0 for record in self.records),
            sum(record.completion_tokens or 0 for record in self.records),
        )

    @property
    def marks(self) -> list[str]:
        """How sure the costs are: `settled`, `quoted`, …"""
        return list(dict.fromkeys(amount_of(record)[1] for record in self.records))


class Figures:
    """Receipts of one token, added up in every way that the report shows."""

    def __init__(self, records: Sequence[SettlementReceipt], findings: Sequence[Finding], *, is_checked: bool) -> None:
        self.records = tuple(sorted(records, key=lambda record: (record.created_at, record.call_id)))
        self._is_checked = is_checked
        self._calls = Counter(map(payment_of, self.records))
        self._found: dict[str, list[Finding]] = {}
        for finding in findings:
            self._found.setdefault(finding.about, []).append(finding)
        self.total = self._sum("together", self.records)
        self.by_model = _largest_first(self._sums(model_of))
        self.by_day = self._sums(day_of)
        self.by_run = [] if all(record.run is None for record in self.records) else _largest_first(self._sums(run_of))
        """Empty where no call belongs to a run."""
        self.by_payment = self._sums(payment_of)
        self.disputed = [record for record in self.records if status_word(record) == "disputed"]

    def findings_of(self, record: SettlementReceipt) -> list[Finding]:
        """Everything that was found out about a call and its payment."""
        about = dict.fromkeys((record.authorization_id, payment_of(record), record.call_id))
        return [finding for name in about for finding in self._found.get(name, [])]

    def basis(self, record: SettlementReceipt, aspect: str) -> str:
        """On what an aspect of a record rests: a key of `BASES`; the worst, if there are several statements."""
        if not self._is_checked:
            return UNCHECKED
        found = [basis_of(finding) for finding in self.findings_of(record) if finding.statement in ASPECTS[aspect]]
        return max(found, key=list(BASES).index, default="undecided")

    def _sums(self, key: Callable[[SettlementReceipt], str]) -> list[Sum]:
        return [self._sum(name, records) for name, records in grouped(self.records, key).items()]

    def _sum(self, name: str, records: Sequence[SettlementReceipt]) -> Sum:
        held = Counter(map(payment_of, records))
        by_basis: dict[str, int] = {}
        for record in records:
            basis = self.basis(record, "settlement")
            is_whole = held[payment_of(record)] == self._calls[payment_of(record)]
            if not is_whole and basis in _OF_SUMS:  # the chain shows the sum; its parts are the payer's word
                basis = "stated"
            by_basis[basis] = by_basis.get(basis, 0) + amount_of(record)[0]
        ordered = {basis: by_basis[basis] for basis in BASES if basis in by_basis}
        return Sum(name=name, records=tuple(records), by_basis=ordered)


def _largest_first(sums: list[Sum]) -> list[Sum]:
    return sorted(sums, key=lambda one: -one.amount_atomic)


def payment_of(record: SettlementReceipt) -> str:
    """What is settled as a whole: an authorization, or a payment channel (its id is the nonce)."""
    is_on_channel = record.scheme == SCHEME
    return f"0x{int(record.nonce):064x}" if is_on_channel else record.authorization_id


def basis_of(finding: Finding) -> str:
    """On what a finding rests: a key of `BASES`."""
    if isinstance(finding, Undecided) and finding.why.startswith(NOT_ASKED):
        return RECORDED
    return finding.kind


def sources_of(findings: Sequence[Finding]) -> list[str]:
    """What was read, and how far it had come then."""
    named: dict[str, None] = {}
    for finding in findings:
        if isinstance(finding, Read):
            source = finding.source
            block = "" if source.block_number is None else f", block {source.block_number} ({source.block_hash})"
            named[f"{source.name}{block}"] = None
    return list(named)
