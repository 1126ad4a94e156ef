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

    __slots__ = ("_is_first", "_pieces", "_size", "_tail")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._is_first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completed, in order; an unfinished event waits for the next call."""
        data, self._tail = self._with_plain_line_ends(self._tail + data)
        if self._is_first and data:
            data = data.removeprefix(b"\xef\xbb\xbf")
            self._is_first = False
        before = self._pieces[-1][-1:] if self._pieces else b""
        if b"\n\n" not in before + data:
            # Kept in pieces: joining at every feed would make a large event cost its square.
            self._hold(data)
            return []
        *events, rest = b"".join([*self._pieces, data]).split(b"\n\n")
        self._pieces, self._size = [], 0
        self._hold(rest)
        return [payload for event in events if (payload := _payload(event)) is not None]

    def flush(self) -> list[bytes]:
        """What a stream that ended without its last blank line still held."""
        rest = b"".join(self._pieces).rstrip(b"\n")
        self._pieces, self._size, self._tail = [], 0, b""
        payload = _payload(rest)
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


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None
