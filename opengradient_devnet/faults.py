"""What a gateway can be told to do wrong, and how often.

Each fault is a small value. `Faults` holds those that are armed; the parts of the gateway ask it for the kind that
they can carry out. A fault strikes `times` times (None: until cleared), after skipping the first `skip` occasions.
`parse_fault` reads the JSON of the `POST /faults` control route.

How a fault is carried out is written where the right behaviour is. The module is long because it is a catalog.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from opengradient_devnet.tool_call_styles import ToolCallStyle

MEBIBYTE = 2**20


# --- before payment: the challenge ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTerms:
    """Offer other terms; None leaves a field as it is. The gateway honours what it has offered.

    `amount` is text so that a test can send "٣", "-5" or "0.5". `facilitator` is extra.facilitatorAddress.
    """

    amount: str | None = None
    pay_to: str | None = None
    asset: str | None = None
    network: str | None = None
    scheme: str | None = None
    facilitator: str | None = None
    max_timeout_s: int | None = None

    def apply(self, offer: dict[str, Any]) -> dict[str, Any]:
        """The altered copy of one `accepts` entry."""
        renamed = {
            "amount": self.amount,
            "payTo": self.pay_to,
            "asset": self.asset,
            "network": self.network,
            "scheme": self.scheme,
            "maxTimeoutSeconds": self.max_timeout_s,
        }
        altered = offer | {field: value for field, value in renamed.items() if value is not None}
        if self.facilitator is not None:
            altered["extra"] = offer["extra"] | {"facilitatorAddress": self.facilitator}
        return altered


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterChallenge:
    """Change the challenge around its offers: another version (v1 downgrade), another resource URL."""

    x402_version: int | None = None
    resource_url: str | None = None
    error: str | None = None

    def apply(self, challenge: dict[str, Any]) -> dict[str, Any]:
        """The altered copy of the PAYMENT-REQUIRED content."""
        altered = dict(challenge)
        if self.x402_version is not None:
            altered["x402Version"] = self.x402_version
        if self.error is not None:
            altered["error"] = self.error
        if self.resource_url is not None:
            altered["resource"] = challenge["resource"] | {"url": self.resource_url}
        return altered


@dataclass(frozen=True, slots=True, kw_only=True)
class RawChallenge:
    """Send exactly this PAYMENT-REQUIRED header (None: none at all), `copies` times."""

    header: str | None
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HugeChallenge:
    """A 402 whose body is enormous, sent in pieces with a pause between them."""

    body_bytes: int = 200 * MEBIBYTE
    pace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusePayment:
    """Answer a good payment with another 402: each time, or as if its settlement had timed out."""

    error: str = "Payment required"


# --- sessions and settlement ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSession:
    """Declare the session of a request dead although it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeSessionId:
    """Send this X-Upto-Session value instead of the real one (no CR or LF: HTTP cannot carry them)."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAtCap:
    """Take the whole signed amount, whatever the calls cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSettle:
    """Serve, and never collect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailSettlement:
    """Report that a payment could not be settled; nothing is sent to the chain."""

    reason: str = "settlement_timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleForSomebodyElse:
    """Settle nothing of the client's, and pass off a real settlement of another payer as it.

    The other payer pays the same amount, to the same payee or to `pay_to`; the client's authorization stays unspent.
    """

    pay_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongTransaction:
    """Name another transaction wherever a response would name the real one: one that is on no chain, or, with
    `transaction`, any real one (another payer's settlement, the client's own transfer to a stranger).
    """

    transaction: str = "0x" + "de" * 32


# --- after payment: the answer ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStatus:
    """After payment, answer with this status instead of a completion."""

    status: int
    body: str = '{"error": "injected"}'
    content_type: str = "application/json"
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Send the client elsewhere, before or after payment."""

    location: str
    status: int = 307
    when: Literal["unpaid", "paid"] = "paid"


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """Take the payment, wait, and close the connection without an answer."""

    after_s: float = 0.0
    charge: bool = True
    """whether the model has run, so that the call is charged all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbleBody:
    """Cut a complete answer's JSON in half; the length header agrees with what is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateStream:
    """Stop a stream after this number of deltas: without the final event and [DONE], or by cutting the connection."""

    after_deltas: int = 1
    cut_connection: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OmitDone:
    """Send the final event, and end without [DONE]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent:
    """Send an error event in the middle of a stream, and end."""

    after_deltas: int = 1
    message: str = "The provider failed."
    send_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyStream:
    """A 200 whose event stream holds nothing, or nothing but [DONE]."""

    send_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvent:
    """Put this text into a stream, as it is, after this number of deltas."""

    text: str
    after_deltas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDrip:
    """Wait this number of seconds before every chunk of a stream."""

    pace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStyle:
    """Stream in another dialect: tool-call deltas, `message` for `delta`, broken arguments."""

    tool_calls: ToolCallStyle = ToolCallStyle.FRAGMENTS
    as_message: bool = False
    broken_arguments: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OmitUsage:
    """Leave `usage` out of the answer; the call is charged as ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewClock:
    """Let the gateway's Date header be wrong by this number of seconds (negative: it is behind)."""

    by_s: float


# --- proofs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeProof:
    """Make the TEE proof wrong in one way.

    `key`: signed by a key that is not the enclave's. `signature`: one bit flipped. `timestamp`: another time
    than the signed one. `stale`: correctly signed, an hour ago. `request_hash`, `output_hash`: correctly
    signed, over something else. `replayed`: the whole proof of the call before, or of one that nobody made when
    there was none. `reused_signature`: this call's hashes under the signature of that other proof. `absent`: no
    proof at all.
    """

    part: Literal[
        "key",
        "signature",
        "timestamp",
        "stale",
        "request_hash",
        "output_hash",
        "replayed",
        "reused_signature",
        "absent",
    ]


Fault = (
    AlterTerms
    | AlterChallenge
    | RawChallenge
    | HugeChallenge
    | RefusePayment
    | KillSession
    | ForgeSessionId
    | SettleAtCap
    | NeverSettle
    | FailSettlement
    | SettleForSomebodyElse
    | WrongTransaction
    | AnswerStatus
    | Redirect
    | HangUp
    | GarbleBody
    | TruncateStream
    | OmitDone
    | ErrorEvent
    | EmptyStream
    | RawEvent
    | SlowDrip
    | StreamStyle
    | OmitUsage
    | SkewClock
    | ForgeProof
)
_Kind = TypeVar("_Kind", bound=Fault)


class FaultUnknown(ValueError):
    """The JSON names no fault, or gives it members that it does not have."""


def _name(kind: type[Fault]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


FAULT_KINDS: dict[str, type[Fault]] = {_name(kind): kind for kind in Fault.__args__}


def parse_fault(name: str, members: Mapping[str, Any]) -> Fault:
    """`("slow_drip", {"pace_s": 0.1})` -> `SlowDrip(pace_s=0.1)`."""
    kind = FAULT_KINDS.get(name)
    if kind is None:
        raise FaultUnknown(f"There is no fault {name!r}; there are {', '.join(FAULT_KINDS)}.")
    known = {field.name for field in dataclasses.fields(kind)}
    if not known.issuperset(members):
        raise FaultUnknown(f"{name} has the members {sorted(known)}, not {sorted(set(members) - known)}.")
    if "tool_calls" in members:
        members = {**members, "tool_calls": ToolCallStyle(members["tool_calls"])}
    try:
        return kind(**members)
    except TypeError as exc:
        raise FaultUnknown(f"{name}: {exc}") from exc


@dataclass(slots=True, kw_only=True)
class _Armed:
    fault: Fault
    left: int | None
    skip: int


class Faults:
    """The faults that are armed, and those that have struck. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._struck: list[Fault] = []

    def inject(self, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Arm `fault` for `times` occasions (None: all, until `clear`), after `skip` that go well."""
        if times is not None and times < 1:
            raise ValueError(f"A fault that strikes {times} times is none.")
        with self._lock:
            self._armed.append(_Armed(fault=fault, left=times, skip=skip))

    def clear(self) -> None:
        """Disarm everything; what has struck stays on record."""
        with self._lock:
            self._armed.clear()

    @property
    def struck(self) -> list[Fault]:
        """Every fault that was carried out, in order, once per strike."""
        with self._lock:
            return list(self._struck)

    def take(self, kind: type[_Kind], **criteria: object) -> _Kind | None:
        """The fault of this kind that strikes now, if one does; `criteria` are members it must have."""
        with self._lock:
            for armed in self._armed:
                fault = armed.fault
                if not isinstance(fault, kind) or not _meets(fault, criteria):
                    continue
                if armed.skip:
                    armed.skip -= 1
                    return None
                if armed.left is not None:
                    armed.left -= 1
                    if armed.left == 0:
                        self._armed.remove(armed)
                self._struck.append(fault)
                return fault
            return None

    def lasting(self, kind: type[_Kind]) -> _Kind | None:
        """The fault of this kind that is armed without limit, without counting a strike."""
        with self._lock:
            for armed in self._armed:
                if isinstance(armed.fault, kind) and armed.left is None and not armed.skip:
                    return armed.fault
            return None


def _meets(fault: Fault, criteria: Mapping[str, object]) -> bool:
    return all(getattr(fault, member) == value for member, value in criteria.items())
