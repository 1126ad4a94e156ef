"""The run that a call belongs to: a workflow or agent by its run id, a query engine and the like by its outermost span.

Spans name only their parent, so the outermost one is noted when it begins. A model that is called directly is no run.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.base.llms.base import BaseLLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler

RUN_ID_TAG: Final = "llamaindex.run_id"
"""The tag under which llama-index-workflows names the run of an agent or workflow."""

_outermost: ContextVar[str | None] = ContextVar("opengradient_outermost_span", default=None)


class _Outermost(BaseSpanHandler[BaseSpan]):
    """Notes the span that has no parent, in the context in which what belongs to it runs. It keeps no span."""

    def span_enter(self, id_: str, *_: Any, instance: Any = None, parent_id: str | None = None, **__: Any) -> None:
        if parent_id is None:
            _outermost.set(None if isinstance(instance, BaseLLM) else id_)

    def span_exit(self, *_: Any, **__: Any) -> None:
        """Nothing is kept of it."""

    def span_drop(self, *_: Any, **__: Any) -> None:
        """Nothing is kept of it."""

    def new_span(self, *_: Any, **__: Any) -> None:
        """Nothing is kept of it."""

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
        """Nothing is kept of it."""

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
        """Nothing is kept of it."""


get_dispatcher().add_span_handler(_Outermost())


def current_run() -> str | None:
    """The id of the run that makes the calls of this context; None outside of one."""
    workflow: str | None = active_instrument_tags.get().get(RUN_ID_TAG)
    if workflow is not None:
        return workflow
    return None if active_span_id.get() is None else _outermost.get()
