"""HTTP/1.1 as bytes: a request in one piece, and the reader of its response. Sans-I/O.

llhttp (in httptools) parses, strictly. A response is read with bounded headers, and never past its end: what a
server sends behind it makes the connection useless for another request.
"""

from __future__ import annotations

import re
from typing import Final

import httptools
import httpx

_LARGEST_HEAD: Final = 100 * 1024
"""Of a response. A challenge is one header of several kilobytes."""
_HEADER_LINES: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00\r\n]*\r\n)*")
_NO_BODY: Final = (204, 304)


def message_of(request: httpx.Request, content: bytes) -> bytes:
    """The whole request. Raises httpx.LocalProtocolError for headers that a server would read as something else."""
    headers = request.headers.raw
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if _HEADER_LINES.fullmatch(lines) is None or lines.count(b"\n") != len(headers):
        raise httpx.LocalProtocolError("a header of the request has a name or a value that HTTP does not allow")
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (request.method.encode("ascii"), request.url.raw_path, lines, content)


class ResponseReader:
    """One response, fed with bytes as they come; `taken` gives out what has come of its body."""

    __slots__ = (
        "_ends_with_line",
        "_fed",
        "_parser",
        "_pieces",
        "has_head",
        "headers",
        "is_complete",
        "keeps_line",
        "status",
        "waiting",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_complete = False
        self.keeps_line = False
        """Whether the connection serves another request, once the response is complete."""
        self.waiting = 0
        """How many bytes of the body wait to be taken."""
        self._ends_with_line = False
        self._fed = 0
        self._pieces: list[bytes] = []
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Takes what came. Raises httpx.RemoteProtocolError for bytes that are not a response."""
        if self._parser is None:
            self.keeps_line = False  # nothing was asked that this could answer
            return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.keeps_line = False
            if not self.is_complete:
                raise httpx.RemoteProtocolError(f"the server sent what is no HTTP response: {exc}") from exc
        if self.is_complete:
            self._parser = None  # it knows this reader: the two would wait for the garbage collector
        elif not self.has_head and self._fed > _LARGEST_HEAD:
            raise httpx.RemoteProtocolError(f"the response's headers are larger than {_LARGEST_HEAD} bytes")

    def end(self) -> None:
        """The connection has ended. Raises httpx.RemoteProtocolError if the response has not."""
        self.keeps_line = False
        if self.is_complete:
            return
        if not self._ends_with_line:
            what = "in the middle of its response" if self.has_head else "without a response"
            raise httpx.RemoteProtocolError(f"the server ended the connection {what}")
        self.is_complete, self._parser = True, None

    def taken(self) -> bytes:
        """What has come of the body since it was last asked for."""
        pieces, self._pieces, self.waiting = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- llhttp's events

    def on_message_begin(self) -> None:
        """The first line begins."""
        if self.is_complete:
            raise ValueError("a second response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one behind the body is left out."""
        if not self.has_head:
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """An interim response (1xx) is followed by the real one."""
        self.status = self._running().get_status_code()
        self.has_head = self.status >= 200
        if not self.has_head:
            self.headers = []
            return
        framing = {name.lower(): value for name, value in self.headers}
        is_chunked = b"chunked" in framing.get(b"transfer-encoding", b"").lower()
        self._ends_with_line = not is_chunked and b"content-length" not in framing and self.status not in _NO_BODY

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)
        self.waiting += len(piece)

    def on_message_complete(self) -> None:
        """The response has ended."""
        if self.has_head:
            self.is_complete, self.keeps_line = True, self._running().should_keep_alive()

    def _running(self) -> httptools.HttpResponseParser:
        assert self._parser is not None  # noqa: S101  (only it calls the events)
        return self._parser
