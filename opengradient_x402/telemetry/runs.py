"""The name of the run that the calls of a `with` block belong to, so that spending can be added up by run.

Without one, the frameworks' plug-ins give the id of the outermost run (LangChain), or of the workflow or engine
(LlamaIndex).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from opengradient_x402.errors import ConfigurationError
from opengradient_x402.telemetry.blocks import Blocks

_MAX_CHARS: Final = 128
_names: Final = Blocks[str]("run")


@contextmanager
def named_run(name: str) -> Generator[str]:
    """Names the run of all calls in the block: receipts have it as `run`, and lists and reports add up by it.

    ```python
    from opengradient_x402 import named_run

    with named_run("nightly report"):
        ...  # calls of LangChain, LlamaIndex, or the gateway client
    ```

    The inner one of two blocks counts. Tasks and the frameworks' threads that begin in the block belong to it; a plain
    `threading.Thread` does not. Raises ConfigurationError for a name that is empty, has control characters, or is
    longer than 128 characters.
    """
    if not name.strip() or len(name) > _MAX_CHARS or not name.isprintable():
        raise ConfigurationError(
            f"{name[: _MAX_CHARS + 1]!r} cannot name a run. Nothing was sent or paid. Use 1 to {_MAX_CHARS} printable "
            "characters."
        )
    with _names.opened(name):
        yield name


def name_of_run() -> str | None:
    """The name that the user gave to the run of this context; None without one."""
    names = _names.values()
    return names[-1] if names else None
