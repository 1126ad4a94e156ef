"""Keeps session ids out of debug logs: whoever holds one spends from the payer's authorization.

At DEBUG level httpcore prints the headers of every response, and a gateway opens a session by answering with
`X-Upto-Session`. A filter on httpcore's loggers blanks that value; records that do not name the header pass as
they are, and above DEBUG nothing is logged and nothing costs anything. Does not know HTTP, nor what sessions are.
"""

from __future__ import annotations

import logging
import re
from typing import Final

_LOGGERS: Final = ("httpcore.http11", "httpcore.http2")
_SESSION_HEADER: Final = re.compile(r"""(x-upto-session['"]?\s*[:,]\s*b?['"]?)[^'"\s)]+""", re.IGNORECASE)


class _SessionFilter(logging.Filter):
    """Lets every record pass, without the session id."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        redacted = _SESSION_HEADER.sub(r"\1[redacted]", text)
        if redacted != text:
            record.msg, record.args = redacted, ()
        return True


_filter: Final = _SessionFilter()


def redact_sessions() -> None:
    """Has httpcore log no session id, from now on. Called where transports are made; a second call does nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
