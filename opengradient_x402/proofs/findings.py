"""What a check found out: a statement, and what it rests on. Plain data, the same for programs and for people.

A finding is of one of three classes, each a type that cannot be made without what it rests on: `Proven` names the key
that signed, `Read` the source that was asked, `Stated` the one who says so. A statement that could not be decided is
`Undecided`, and one that the evidence contradicts is `Refuted`. A `Statement` fixes which classes it can have: what
only the payer can know is never proven.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar, Final

from opengradient_x402.chain.sources import Source


def utc(time_s: int) -> str:
    """A moment as people write it, `2026-11-29 09:03:48 UTC`; what no calendar has stays a number."""
    try:
        return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return str(time_s)


class Statement(StrEnum):
    """Everything that a check may say, in the words in which it is shown."""

    MADE = "the payer made this file"
    NETWORK = "the contracts are those of the network"
    ONCE = "no payment and no proof is claimed twice"
    HISTORY = "the records are in the ledger's history"
    CONTINUED = "the history continues the earlier one"
    ANCHORED = "the history's records were there at the time of the anchor"
    COMPLETE = "all settlements of the period are in this file"
    SIGNED = "the payer signed for this payment"
    PAID = "the settlement is as the receipt says"
    CONFIRMED = "the settlement is in a block of the chain"
    NOTHING_TAKEN = "nothing was taken"
    CHANNEL = "deposits, claims and refunds of the payment channel are as the file says"
    PAYEE = "the payee is a gateway's"
    FACILITATOR = "the facilitator is known"
    SHARES = "the calls' shares add up to the settlement"
    TOLD = "model, tokens, times, endpoint and outcome of the call"
    DISPUTE = "claims and facts agree, or the receipt says that they do not"
    DECIDED = "a person decided about this payment"
    ENCLAVE = "the enclave's key signed the call's hashes"
    REGISTERED = "the key is registered as an enclave's"
    ATTESTED = "an attested enclave named the key as its own"
    OWN_CALL = "the enclave's proof belongs to a call of this payer"
    DATA = "the call's data were settled on chain"
    NO_DATA = "nothing about the call's data was to be written on chain"
    BLOB = "the blob is the record of this call"
    NAMED_TRANSACTION = "the gateway named the right transaction for the data settlement"
    NAMED_BLOB = "the gateway named the right blob for the data settlement"


_PROVABLE: Final = frozenset(
    {
        Statement.MADE,
        Statement.HISTORY,
        Statement.CONTINUED,
        Statement.SIGNED,
        Statement.ENCLAVE,
        Statement.ATTESTED,
    }
)
_READABLE: Final = frozenset(
    {
        Statement.NETWORK,
        Statement.COMPLETE,
        Statement.ANCHORED,
        Statement.PAID,
        Statement.CONFIRMED,
        Statement.NOTHING_TAKEN,
        Statement.CHANNEL,
        Statement.PAYEE,
        Statement.FACILITATOR,
        Statement.REGISTERED,
        Statement.OWN_CALL,
        Statement.DATA,
        Statement.BLOB,
        Statement.NAMED_TRANSACTION,
        Statement.NAMED_BLOB,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One statement (`about` names its subject: a call id, an authorization, a wallet) and why it stands as it does."""

    statement: Statement
    about: str
    why: str

    kind: ClassVar[str]
    heading: ClassVar[str]

    def to_json(self) -> dict[str, str | int]:
        """A flat dict of strings and ints."""
        shown: dict[str, str | int] = {"class": self.kind, "statement": self.statement.value, "about": self.about}
        return shown | {"why": self.why} | self._basis()

    def _basis(self) -> dict[str, str | int]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven(_Finding):
    """It follows from a signature over exactly these fields. `owner` is where the key's owner was read.

    Without `owner` the key speaks for itself: a payer's wallet is its address.
    """

    key: str
    owner: Source | None = None

    kind: ClassVar[str] = "proven"
    heading: ClassVar[str] = "Proven by a signature"

    def __post_init__(self) -> None:
        _check(self, _PROVABLE)

    def _basis(self) -> dict[str, str | int]:
        return {"key": self.key} | ({} if self.owner is None else self.owner.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(_Finding):
    """It was read from a source that the reader chose."""

    source: Source

    kind: ClassVar[str] = "read"
    heading: ClassVar[str] = "Read from a source"

    def __post_init__(self) -> None:
        _check(self, _READABLE)

    def _basis(self) -> dict[str, str | int]:
        return self.source.to_json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated(_Finding):
    """Somebody says so, and nothing else shows it."""

    by: str = "the payer"

    kind: ClassVar[str] = "stated"
    heading: ClassVar[str] = "Stated by the payer, and shown by nothing else"

    def _basis(self) -> dict[str, str | int]:
        return {"by": self.by}


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided(_Finding):
    """The evidence is missing or was not reachable: it may be true."""

    kind: ClassVar[str] = "undecided"
    heading: ClassVar[str] = "Not decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuted(_Finding):
    """The evidence contradicts it."""

    kind: ClassVar[str] = "refuted"
    heading: ClassVar[str] = "Refuted"


Finding = Proven | Read | Stated | Undecided | Refuted
CLASSES: Final[tuple[type[Finding], ...]] = (Refuted, Undecided, Proven, Read, Stated)
"""In the order in which people should see them."""


def totals(findings: Iterable[Finding]) -> dict[str, int]:
    """How many statements there are of each class. There is no single word for all of them, on purpose."""
    counted = Counter(finding.kind for finding in findings)
    return {kind.kind: counted[kind.kind] for kind in (Proven, Read, Stated, Undecided, Refuted)}


def without_chain(finding: Finding, *, why: str) -> Finding:
    """The finding for a reader who did not ask the chain, or not through contracts that they know."""
    match finding:
        case Read(source=source) if source.is_chain:
            pass
        case Proven(owner=Source(is_chain=True)):
            pass
        case _:
            return finding
    return Undecided(statement=finding.statement, about=finding.about, why=f"{why} ({finding.why})")


def _check(finding: _Finding, allowed: frozenset[Statement]) -> None:
    if finding.statement not in allowed:
        raise TypeError(f"{finding.statement!r} can never be {finding.kind}")
