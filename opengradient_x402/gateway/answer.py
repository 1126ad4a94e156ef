"""Reads one answer, in one piece or as a stream: bytes in, a `Completion` or `Delta`s out, or the error.

Sans-I/O. Sizes and pauses have limits. An answer with a compression that was not asked for is refused.
Streams are server-sent events (WHATWG HTML §9.2, `data` and `event`). An event with a name is no part of the answer:
`x402-settlement` says what became of the payment, and goes into the call's claims.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, cast

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.completions import Completion, Delta, ErrorEvent, StreamAccumulator, Truncated, parse_completion
from opengradient_x402.effects import Read, Steps
from opengradient_x402.errors import NotPaid, OpenGradientError, ResponseInvalid
from opengradient_x402.gateway.failures import interrupted, refused, unreadable
from opengradient_x402.payment.call import Call, payment_claims

MAX_BODY_BYTES: Final = 256 * 1024 * 1024
MAX_REST_BYTES: Final = 64 * 1024
"""How much is read after the last delta of a stream, while waiting for the end of the body."""
_SHOWN_BYTES: Final = 500
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
"""Packed once, as asked for. Two layers, or zstd, could turn one read of a few kilobytes into gigabytes."""
_MISSHAPEN = (TypeError, AttributeError, KeyError, ValueError)


class AnswerReader:
    """The answer to one call: feed `take_body`, ask for `completion`; or `take_chunk`, `stream_completion`."""

    def __init__(self, call: Call, *, stop: Sequence[str], max_tokens: int | None, timeout_s: float) -> None:
        self._call = call
        self._stop = stop
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._silent_since: float | None = None
        self._received = 0
        self._body: list[bytes] = []
        self._decoder = EventDecoder()
        self._has_end_marker = False
        self._broken_by: OpenGradientError | None = None
        self._rest = 0

    @cached_property
    def _accumulator(self) -> StreamAccumulator:
        """For streams: a whole answer has one of its own."""
        return StreamAccumulator(stop=self._stop, max_tokens=self._max_tokens, model=self._call.model)

    @property
    def raw(self) -> Mapping[str, Any]:
        """The terminal event of a stream, with its claims and proof; empty before it arrived."""
        return self._accumulator.raw

    @property
    def shown_chars(self) -> int:
        """How much text was passed on so far."""
        return len(self._accumulator.text)

    def check_encoding(self, response: httpx.Response) -> Steps[None]:
        """Raises for an answer with another compression than the one asked for, before a byte of it is read."""
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding in _ENCODINGS:
            return
        problem = unreadable(self._call, f"it is encoded as {encoding[:40]!r}, which was not asked for")
        yield Read(response)  # unread: reading its first byte would unpack it
        raise problem

    # -- in one piece

    def take_body(self, chunk: bytes) -> None:
        """Collects a piece of a whole (or failed) response."""
        self._received += len(chunk)
        if self._received > MAX_BODY_BYTES:
            raise unreadable(self._call, f"it is larger than {MAX_BODY_BYTES} bytes and was not read further")
        if time.monotonic() > self._deadline:
            what = f"it was not complete after {self._timeout_s:g} s; raise `timeout` for long answers, or stream"
            raise interrupted(self._call, what, shown_chars=0, is_timeout=True)
        self._body.append(chunk)

    def completion(self, response: httpx.Response) -> Completion:
        """The answer in the collected body. Raises GatewayError, ResponseInvalid, or NotPaid when nothing was."""
        body = self._parsed(response)
        if response.is_error:
            raise refused(self._call, response.status_code, body)
        try:
            return parse_completion(body, stop=self._stop, max_tokens=self._max_tokens, model=self._call.model)
        except ErrorEvent as exc:
            raise refused(self._call, None, exc.error) from exc
        except (Truncated, *_MISSHAPEN) as exc:
            raise unreadable(self._call, exc) from exc

    def refusal(self, response: httpx.Response) -> OpenGradientError:
        """The error in the collected body of a response that has an error status."""
        try:
            body = self._parsed(response)
        except (ResponseInvalid, NotPaid):
            body = self._as_text()
        return refused(self._call, response.status_code, body)

    def _parsed(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = strict_json.loads(b"".join(self._body))
        except ValueError as exc:
            if response.is_error:
                return self._as_text()
            raise unreadable(self._call, exc) from exc
        if not isinstance(body, dict):
            raise unreadable(self._call, f"a {type(body).__name__} instead of an object")
        return cast("dict[str, Any]", body)

    def _as_text(self) -> dict[str, Any]:
        return {"error": b"".join(self._body)[:_SHOWN_BYTES].decode("utf-8", "replace")}

    # -- as a stream

    def take_chunk(self, chunk: bytes) -> list[Delta]:
        """What this piece of a stream adds, empty deltas left out.

        An error event breaks the stream: what came before it is given out, the error by `stream_completion`.
        """
        try:
            payloads = self._decoder.feed(chunk)
        except EventTooLarge as exc:
            raise unreadable(self._call, exc) from exc
        if self._decoder.settlement is not None:
            self._take_settlement()
        if payloads:
            self._silent_since = None
        else:
            self._check_progress()
        return self._take_events(payloads)

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be read: the end marker arrived, or the stream broke."""
        return self._has_end_marker or self._broken_by is not None

    @property
    def has_all_content(self) -> bool:
        """Whether no more content is to come: at most usage, claims, the end marker and the end of the body."""
        return self.is_done or self._accumulator.is_finished

    def take_rest(self, chunk: bytes) -> bool:
        """Takes what follows the content, and returns whether more of it is to be read.

        Gateways bill and prove a stream only for clients that read the body to its end (docs/wire.md, "Stream events").
        """
        self._rest += len(chunk)
        if not self.is_done:
            self.take_chunk(chunk)
        return self._rest < MAX_REST_BYTES

    def stream_completion(self) -> Completion:
        """The whole answer of a stream whose bytes have ended. Raises StreamInterrupted and what broke it."""
        if not self.is_done:
            self._take_events(self._decoder.flush())
            self._take_settlement()
        if self._broken_by is not None:
            raise self._broken_by
        if not self._has_end_marker:
            raise interrupted(self._call, "it ended without its end marker", shown_chars=self.shown_chars)
        try:
            return self._accumulator.finish()
        except Truncated as exc:
            raise interrupted(self._call, "it held no content", shown_chars=self.shown_chars) from exc
        except _MISSHAPEN as exc:
            raise unreadable(self._call, exc) from exc

    def _take_settlement(self) -> None:
        """What the gateway says of the payment after the answer: claims, as in PAYMENT-RESPONSE. Never an error."""
        payload, self._decoder.settlement = self._decoder.settlement, None
        try:
            event = strict_json.loads(payload or b"")
        except ValueError:
            return
        if isinstance(event, dict):
            claims = payment_claims(event.get("paymentResponse"))
            if event.get("success") is False:
                claims = {"errorReason": event.get("error"), **claims, "success": False}
            self._call.claims = {**self._call.claims, **claims}

    def _check_progress(self) -> None:
        """Bytes arrive, but no event: comments, or one event in drips. The time limit ends that too."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self._timeout_s:
            what = f"no event arrived for {self._timeout_s:g} s"
            raise interrupted(self._call, what, shown_chars=self.shown_chars, is_timeout=True)

    def _take_events(self, payloads: list[bytes]) -> list[Delta]:
        deltas: list[Delta] = []
        for payload in payloads:
            if payload == DONE:
                self._has_end_marker = True
                if not (delta := self._accumulator.end()).is_empty:
                    deltas.append(delta)
                break
            try:
                delta = self._accumulator.feed(strict_json.loads(payload))
            except ErrorEvent as exc:
                self._break(refused(self._call, None, exc.error), exc)
                break
            except _MISSHAPEN as exc:
                self._break(unreadable(self._call, exc), exc)
                break
            if delta.finish_reason is not None or not delta.is_empty:
                deltas.append(delta)
        return deltas

    def _break(self, problem: OpenGradientError, cause: Exception) -> None:
        problem.__cause__ = cause
        self._broken_by = problem


DONE = b"[DONE]"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NAMES_OF_ANSWERS: Final = (b"", b"message", b"error")
_SETTLEMENT: Final = b"x402-settlement"
"""Sent before the end marker by og-x402 2.15.0 (docs/wire.md, "Stream events")."""
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An event larger than this is refused: it is a fault or an attack, not a chunk (generated images stay far below)."""


class EventTooLarge(ValueError):
    """A single event outgrew `MAX_EVENT_BYTES`."""


class EventDecoder:
    """Turns a byte stream into the `data` payloads of an answer. One per response; not thread-safe.

    `settlement` is the last `x402-settlement` event; other events with a name of their own are left out.
    """

    __slots__ = ("_is_first", "_pieces", "_size", "_tail", "settlement")

    def __init__(self) -> None:
        self.settlement: bytes | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._is_first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completed, in order; an unfinished event waits for the next call."""
        data, self._tail = self._with_plain_line_ends(self._tail + data)
        before = self._pieces[-1][-1:] if self._pieces else b""
        if b"\n\n" not in before + data:
            # Kept in pieces: joining at every feed would take quadratic time for a large event.
            self._hold(data)
            return []
        *events, rest = b"".join([*self._pieces, data]).split(b"\n\n")
        self._pieces, self._size = [], 0
        self._hold(rest)
        if self._is_first:
            events[0] = events[0].removeprefix(_BYTE_ORDER_MARK)
            self._is_first = False
        return [payload for event in events if (payload := self._payload(event)) is not None]

    def flush(self) -> list[bytes]:
        """What a stream that ended without its last blank line still held."""
        rest = b"".join(self._pieces).rstrip(b"\n")
        self._pieces, self._size, self._tail = [], 0, b""
        payload = self._payload(rest.removeprefix(_BYTE_ORDER_MARK) if self._is_first else rest)
        return [] if payload is None else [payload]

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"An event of the stream is larger than {MAX_EVENT_BYTES} bytes.")
        if data:
            self._pieces.append(data)

    @staticmethod
    def _with_plain_line_ends(data: bytes) -> tuple[bytes, bytes]:
        """The data with `\\n` alone, and what must wait: a last `\\r` may be the first half of `\\r\\n`."""
        if b"\r" not in data:
            return data, b""
        head, tail = (data[:-1], b"\r") if data.endswith(b"\r") else (data, b"")
        return head.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), tail

    def _payload(self, event: bytes) -> bytes | None:
        """The data of one event, without blanks around it. None for what is no part of the answer, or has no data."""
        if event.startswith(b"data: ") and b"\n" not in event:
            return event[6:].strip() or None
        name, lines = b"", []
        for line in event.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                lines.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ")
        payload = b"\n".join(lines).strip()
        if not payload:
            return None
        # Some servers name the pieces of the answer, too.
        if name in _NAMES_OF_ANSWERS or payload == DONE or b'"choices"' in payload:
            return payload
        if name == _SETTLEMENT:
            self.settlement = payload
        return None
