"""Server-sent events: bytes in, event payloads out (WHATWG HTML §9.2, the `data` field only).

Sans-I/O: the caller feeds decoded (not gzipped) bytes as they arrive. Nothing here knows what an event means.
"""

from __future__ import annotations

DONE = b"[DONE]"
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An event larger than this is refused: it is a fault or an attack, not a chunk (generated images stay far below)."""


class EventTooLarge(ValueError):
    """A single event outgrew `MAX_EVENT_BYTES`."""


class EventDecoder:
    """Turns a byte stream into `data` payloads. One per response; not thread-safe."""

    __slots__ = ("_buffer", "_first")

    def __init__(self) -> None:
        self._buffer = b""
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completed, in order; an unfinished event waits for the next call."""
        buffer = self._buffer + data if self._buffer else data
        if self._first and buffer:
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        if b"\r" in buffer:
            buffer = _unify_line_ends(buffer)
        *events, rest = buffer.split(b"\n\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"An event of the stream is larger than {MAX_EVENT_BYTES} bytes.")
        self._buffer = rest
        return [payload for event in events if (payload := _payload(event)) is not None]

    def flush(self) -> list[bytes]:
        """What a stream that ended without its last blank line still held."""
        rest, self._buffer = self._buffer.rstrip(b"\r\n"), b""
        payload = _payload(rest)
        return [] if payload is None else [payload]


def _unify_line_ends(buffer: bytes) -> bytes:
    # A trailing "\r" may be the first half of "\r\n": it is left as it is until its other half arrives.
    head, tail = (buffer[:-1], b"\r") if buffer.endswith(b"\r") else (buffer, b"")
    return head.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None
