"""Anchors a ledger's history: its head is written where the payer cannot date it back, in a transaction's calldata.

An anchor shows that the records under a head were there at the time of a block. A bundle names its anchors, and proves
that each head is the beginning of its own history; who sent the transaction does not matter. The chain is read through
the reader's node.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.chain.node import look_up
from opengradient_x402.chain.questions import Question, block, receipt, transaction
from opengradient_x402.chain.sources import Source, Sources
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, LedgerUnavailable
from opengradient_x402.keys.signer import Signer
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network
from opengradient_x402.proofs.bundle import Bundle
from opengradient_x402.proofs.findings import Finding, Read, Refuted, Statement, Undecided, utc
from opengradient_x402.proofs.history import Head, HistoryTree, head_of, is_continued

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book
    from opengradient_x402.ledger.upkeep import History

_NOTED_AS: Final = "anchor"
"""A ledger notes an anchor under `anchor <chain id> <size>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A head (size and root), and the transaction that has it."""

    size: int
    root: str
    tx_hash: str

    @property
    def head(self) -> Head:
        """What was anchored."""
        return Head(size=self.size, root=self.root)

    @property
    def name(self) -> str:
        """The head, as the command prints it."""
        return f"{self.size}:{self.root}"


def anchor_text(head: Head) -> bytes:
    """The calldata of an anchor: all of it, in ASCII."""
    return f"OpenGradient history {head.size}:{head.root}".encode("ascii")


def anchor_history(ledger: Ledger, *, network: Network, signer: Signer) -> Anchor:
    """Sends the present head in a transaction of the wallet to itself, and notes it in the ledger. Costs gas.

    The head covers everything that was exported in a bundle so far. One that is anchored already is not sent again.
    Raises ConfigurationError for a ledger without a history, InsufficientFunds without gas, ChainUnavailable.
    """
    history: History = ledger.extend_history([]).result()
    if not history.leaves:
        raise ConfigurationError(
            "This ledger has no history yet: it begins with the first bundle. Nothing was sent. Write one "
            "(`opengradient-x402 receipts export --format bundle --output bundle.json`), then anchor it."
        )
    head = HistoryTree(history.leaves).head
    for known in anchors_in(ledger, network=network).result():
        if known.head == head:
            return known
    sending = send_transaction(network, signer, to=signer.address, data=anchor_text(head), what="The anchor")
    tx_hash = look_up(Sources().ask(network, sending))
    anchor = Anchor(size=head.size, root=head.root, tx_hash=tx_hash)
    try:
        ledger.note(f"{_NOTED_AS} {network.chain_id} {head.size}", json.dumps(asdict(anchor))).result()
    except LedgerUnavailable as exc:
        raise LedgerUnavailable(
            f"The head is anchored by the transaction {tx_hash}, and the ledger did not note that, so bundles will not "
            f"name it. Anchoring again sends another one. {exc.message}",
            is_retryable=False,
        ) from exc
    return anchor


def anchors_in(ledger: Ledger, *, network: Network) -> Future[list[Anchor]]:
    """The anchors of this ledger on the network's chain, the smallest head first."""

    def read(_book: Book, conn: Connection) -> list[Anchor]:
        from opengradient_x402.ledger import tables

        begin = f"{_NOTED_AS} {network.chain_id} "
        rows = conn.execute(tables.pins.select().where(tables.pins.c.key.startswith(begin, autoescape=True)))
        return sorted((Anchor(**json.loads(row.value)) for row in rows), key=lambda anchor: anchor.size)

    return ledger.read(read)


def anchor_findings(bundle: Bundle, *, network: Network, sources: Sources) -> Steps[list[Finding]]:
    """For each anchor that a bundle names: whether its head is in that transaction, and begins the bundle's history."""
    history: Any = bundle.history or {}
    head = head_of(bundle)
    anchors = [Anchor(**body) for body in history.get("anchors", ())]
    if head is None or not anchors:
        return []
    proofs = {item["size"]: item["proof"] for item in history["consistency"]} | {head.size: []}
    findings: list[Finding] = []
    for anchor in anchors:
        findings += [(yield from _of_anchor(anchor, head, proofs, network, sources))]
    return findings


def _of_anchor(
    anchor: Anchor, head: Head, proofs: dict[int, Sequence[str]], network: Network, sources: Sources
) -> Steps[Finding]:
    statement, about = Statement.ANCHORED, anchor.name
    proof = proofs.get(anchor.size)
    if proof is None or not is_continued(anchor.head, proof, head):
        why = f"the history of {head.size} records does not begin with the {anchor.size} under {anchor.root}"
        return Refuted(statement=statement, about=about, why=why)
    try:
        source = yield from sources.source(network)
        return (yield from sources.ask(network, _written(anchor, network, source)))
    except ChainUnavailable as exc:
        return Undecided(statement=statement, about=about, why=exc.message)


def _written(anchor: Anchor, network: Network, source: Source) -> Question[Finding]:
    statement, about, tx_hash = Statement.ANCHORED, anchor.name, anchor.tx_hash
    mined = yield from transaction(tx_hash)
    done = yield from receipt(tx_hash)
    if mined is None or done is None or {mined.tx_hash, done.tx_hash} != {tx_hash}:
        why = f"transaction {tx_hash} is not on the chain"
        return Refuted(statement=statement, about=about, why=why)
    if mined.input != anchor_text(anchor.head) or not done.is_success:
        why = f"transaction {tx_hash} does not have this head"
        return Refuted(statement=statement, about=about, why=why)
    head = yield from block()
    there = yield from block(done.block_number)
    if there.hash != done.block_hash:
        why = f"block {done.block_number} is {there.hash} and not {done.block_hash}: the chain was reorganised"
        return Refuted(statement=statement, about=about, why=why)
    date = utc(there.timestamp_s)
    why = f"{anchor.size} records were there at {date}: block {there.number} has their head, in {tx_hash}"
    if head.number - there.number + 1 < network.confirmations:
        why = f"{why}; {network.confirmations} blocks make that final"
        return Undecided(statement=statement, about=about, why=why)
    return Read(statement=statement, about=about, why=why, source=source)
