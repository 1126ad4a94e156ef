"""What a user adds to the requests of a call: headers, and the query of their URL.

Refused before anything is sent: headers that say what a call is or pay for it, and what HTTP cannot carry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from opengradient_x402.parameters import refused_request

_SET_BY_THE_CALL: Final = frozenset(
    {"accept", "accept-encoding", "content-length", "content-type", "host", "transfer-encoding", "x-settlement-type"}
)
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


def checked_headers(headers: Mapping[str, str | None]) -> dict[str, str]:
    """The headers in lower case; those that are None are left out. Raises ConfigurationError."""
    lowered = {str(name).lower(): str(value) for name, value in headers.items() if value is not None}
    for name, value in lowered.items():
        if name in _SET_BY_THE_CALL or name.startswith(("payment-", "x-payment", "x-upto-")):
            hint = "Use `settlement_mode`." if name == "x-settlement-type" else "Leave it out."
            raise refused_request(
                f"The header {name!r} was given, which is set by the call itself. Nothing was paid. {hint}"
            )
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise refused_request(
                f"HTTP cannot carry the header {name!r} as it was given. Nothing was paid. Name it with letters, "
                "digits and '-', and write its value in printable ASCII (`urllib.parse.quote` makes that of any text)."
            )
    return lowered


def checked_query(query: Mapping[str, object]) -> dict[str, str | list[str]]:
    """The query as text, a list for a name that stands in it more than once; what is None is left out.

    Raises ConfigurationError.
    """
    given = {name: value for name, value in query.items() if value is not None}
    texts: dict[str, str | list[str]] = {
        name: [_text(one) for one in value] if isinstance(value, list | tuple) else _text(value)
        for name, value in given.items()
    }
    try:
        urlencode(texts, doseq=True)
    except UnicodeEncodeError as exc:
        raise refused_request(f"The query of the call is no text: {exc}. Nothing was paid. Correct the text.") from exc
    return texts


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
