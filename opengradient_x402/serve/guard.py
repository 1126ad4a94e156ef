"""Who may ask a server: programs that name it by a known host, have a token, and are no page of another origin.

Everything else is refused before its body is read. A page whose name was turned into a loopback address (DNS
rebinding) sends that name as `Host`; a page of another site sends its `Origin`. No answer has a CORS header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from opengradient_x402.serve.keys import ApiKey, key_with
from opengradient_x402.serve.refusals import refusal

KEY_IN_SCOPE: Final = "opengradient.key"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_OWN_SITE: Final = ("same-origin", "none")  # Fetch Metadata, `Sec-Fetch-Site`
_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Guard:
    """Passes a request on to `app` with its key in the scope, or refuses it."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[ApiKey], hosts: Iterable[str]) -> None:
        self._app = app
        self._keys = keys
        self._hosts = frozenset(host.lower() for host in (*_LOOPBACK, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (foreign := self._foreign(headers)) is not None:
            await refusal(_FORBIDDEN, foreign, code="forbidden", kind="permission_error")(scope, receive, send)
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = key_with(token.strip(), self._keys) if scheme.lower() == "bearer" else None
        if key is None:
            await refusal(
                _UNAUTHORIZED,
                "The API key is missing or wrong. Nothing was paid. Use the key that `opengradient-x402 serve` printed "
                "when it started (OPENAI_API_KEY).",
                code="invalid_api_key",
                kind="authentication_error",
            )(scope, receive, send)
            return
        scope[KEY_IN_SCOPE] = key
        await self._app(scope, receive, send)

    def _foreign(self, headers: Headers) -> str | None:
        """Why a request comes from elsewhere; None for one that does not."""
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1 or _name_of(host) not in self._hosts:
            return (
                f"The host {host[:100]!r} is not a name of this server. Nothing was paid. Use the base URL that was "
                "printed at the start, or start the server with `--allow-host NAME`."
            )
        own = (f"http://{host}", f"https://{host}")
        is_own_page = all(origin.lower() in own for origin in headers.getlist("origin"))
        if not is_own_page or not all(site in _OWN_SITE for site in headers.getlist("sec-fetch-site")):
            return "Pages of other origins may not use this server. Nothing was paid. Call it from a program."
        return None


def _name_of(host: str) -> str:
    """The name in a `Host` header, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
