"""What a gateway can do wrong after a payment: the answer, whole and streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opengradient_devnet.tool_call_styles import ToolCallStyle


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
class DripHeaders:
    """Send the headers of a 200 line by line, this number of them with a pause before each, and then end.

    Each line arrives within any limit on a single read. Before or after payment; the call costs nothing.
    """

    pace_s: float
    lines: int = 100
    when: Literal["unpaid", "paid"] = "paid"
