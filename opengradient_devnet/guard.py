"""Keeps web pages out of the devnet: any page that a browser on this machine shows can send requests to loopback.

Three ways in are closed. A page whose name is made to point here (DNS rebinding) names itself in `Host`. A page that
sends requests on its own (cross-site request forgery) has an `Origin`, or browsers say so in `Sec-Fetch-Site`; and what
it can send without asking first is no JSON. No answer carries an `Access-Control-*` header, so no page may read one.

Bodies are read here up to a limit, and only then handed on.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KIBIBYTE = 2**10
MEBIBYTE = 2**20
_CHANGES_STATE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_JSON = "application/json"
_FROM_HERE = frozenset({"same-origin", "none"})  # Sec-Fetch-Site (W3C Fetch Metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRule:
    """What the body of a request may be whose path begins with `path`.

    `is_json_asked` is False where the route itself judges the type: the paid routes, which first ask for money, as the
    live gateways do. `max_bytes` is None where the route itself bounds the body.
    """

    path: str
    max_bytes: int | None
    is_json_asked: bool = True


SITE_BODIES = (
    BodyRule(path="/v1/", max_bytes=None, is_json_asked=False),
    # Everything is in headers of its own there, which no page may send without asking first; the body is empty.
    BodyRule(path="/facilitator/settle_data", max_bytes=256 * KIBIBYTE, is_json_asked=False),
    BodyRule(path="/facilitator/", max_bytes=None),
    BodyRule(path="/rpc", max_bytes=4 * MEBIBYTE),
    BodyRule(path="/", max_bytes=64 * KIBIBYTE),
)
UNPAID_BODIES = (BodyRule(path="/", max_bytes=32 * MEBIBYTE),)


def guarded(app: ASGIApp, *, bodies: tuple[BodyRule, ...] = SITE_BODIES) -> ASGIApp:
    """`app`, for requests that come from programs on this machine or from the devnet's own pages."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal = _stranger(scope, headers)
        if refusal is None and scope["method"] in _CHANGES_STATE:
            rule = next(rule for rule in bodies if scope["path"].startswith(rule.path))
            refusal = _wrong_type(scope["method"], headers) if rule.is_json_asked else None
            if refusal is None and rule.max_bytes is not None:
                body = await _read(receive, limit_bytes=rule.max_bytes)
                if body is None:
                    refusal = _refuse(413, f"The body has more than {rule.max_bytes} bytes. Nothing was done.")
                else:
                    receive = _replayed(body, receive)
        await (app if refusal is None else refusal)(scope, receive, send)

    return served


def _stranger(scope: Scope, headers: Headers) -> JSONResponse | None:
    """The refusal for a request that a web page of somebody else may have sent, or that names a host in its path."""
    if not scope["path"].startswith("/"):
        return _refuse(400, "The request names a whole URL where its path belongs. Nothing was done.")
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _is_loopback(hosts[0]):
        return _refuse(
            403,
            f"The Host header is {', '.join(hosts) or 'missing'}; this devnet answers to 127.0.0.1 and localhost only, "
            "because a web page can give itself any name that points to this machine. Nothing was done.",
        )
    origins = headers.getlist("origin")
    if origins and origins != [f"{scope['scheme']}://{hosts[0]}"]:
        return _refuse(
            403,
            f"The request comes from a web page ({', '.join(origins)}). The devnet holds keys and play money, so no "
            "page but its own may use it. Nothing was done. Call it from a program.",
        )
    if headers.get("sec-fetch-site", "none") not in _FROM_HERE and not _is_followed_link(scope, headers):
        return _refuse(403, "A web page of another site sent this request. Nothing was done.")
    return None


def _is_followed_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person went from another page to one of ours; the page that was left sees nothing of it."""
    return (
        scope["method"] == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine by a name that no name server can give to another.

    The port is not looked at: it is another one behind a forwarded port, and a page cannot gain by it.
    """
    try:
        parts = urlsplit(f"//{host}")
        name, _port = parts.hostname, parts.port
    except ValueError:
        return False
    if name is None or parts.netloc != host or "@" in host or parts.path or parts.query or parts.fragment:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _wrong_type(method: str, headers: Headers) -> JSONResponse | None:
    content_type = headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == _JSON:
        return None
    if method == "DELETE" and not content_type:
        return None  # browsers ask before they send one
    return _refuse(
        415,
        f"The body is {content_type or 'of no type'}; send JSON with the header Content-Type: {_JSON}. "
        "Nothing was done.",
    )


async def _read(receive: Receive, *, limit_bytes: int) -> bytes | None:
    """The whole body; None as soon as it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the client left; the next read will show that
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


def _refuse(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers={"connection": "close"})
