"""The errors of `opengradient_x402`, made catchable as LangChain's typed model errors as well.

An error raised by `ChatOpenGradient` is an instance of both families:

    opengradient_x402.errors     says what happened to the money (NotPaid, PaymentOutcomeUnknown, PaidButFailed)
    langchain_core.exceptions    says what went wrong with the call, by the error's `kind`:

        authentication    ModelAuthenticationError      timeout           ModelTimeoutError
        rate_limit        ModelRateLimitError           connection        ModelConnectionError
        invalid_request   ModelInvalidRequestError      provider          ModelAPIError
        content_filter    ModelInvalidRequestError      context_length    ContextOverflowError
        model_not_found   ModelNotFoundError            anything else     ModelError

`is_retryable` is the x402 family's: false as soon as a signature has left, whatever the cause.
Does not know how errors come about, nor which LangChain retry layer looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from langchain_core import exceptions as core
from langchain_core.exceptions import LangChainException, OutputParserException
from langchain_core.messages import BaseMessage

from opengradient_x402.errors import NotPaid, OpenGradientError
from opengradient_x402.ledger.receipts import SettlementReceipt

_CORE_NAME_BY_KIND: Final = {
    "authentication": "ModelAuthenticationError",
    "connection": "ModelConnectionError",
    "content_filter": "ModelInvalidRequestError",
    "context_length": "ContextOverflowError",
    "invalid_request": "ModelInvalidRequestError",
    "model_not_found": "ModelNotFoundError",
    "provider": "ModelAPIError",
    "rate_limit": "ModelRateLimitError",
    "timeout": "ModelTimeoutError",
}


def _core_class(name: str) -> type[Exception]:
    # The typed model errors are younger than langchain-core 1.0; on an older core the nearest ancestor serves.
    found = getattr(core, name, None) or getattr(core, "ModelError", None) or LangChainException
    return cast("type[Exception]", found)


class ChatModelError(OpenGradientError):
    """Base of everything that `ChatOpenGradient` raises: an x402 error with LangChain's view of it."""

    @property
    def settlement(self) -> dict[str, str | int] | None:
        """The receipt as a plain dict: all of it, since there is no message to carry it."""
        return None if self.receipt is None else self.receipt.to_json()

    def __reduce__(self) -> tuple[Any, ...]:
        # The combined classes are made on demand, so pickle cannot find them by name: rebuild from the parts.
        return _rebuild, (_x402_class(type(self)), self.message, self.__dict__)


class UnsupportedContent(ChatModelError, NotPaid, _core_class("ModelInvalidRequestError"), ValueError):  # type: ignore[misc] # the base is chosen by the installed core
    """A message holds something that the gateways have no place for. Nothing was sent or paid."""

    kind = "invalid_request"


_REFUSAL: type[Exception] = _core_class("ModelRefusalError")
# Where core has no such class, what stands for it is a base of the other one already.
_REFUSAL_BASES = (() if issubclass(OutputParserException, _REFUSAL) else (_REFUSAL,)) + (OutputParserException,)


class ModelRefusal(*_REFUSAL_BASES):  # type: ignore[misc] # the bases are chosen by the installed core
    """The model refused to give the structured output that was asked for. The call was paid and answered."""

    def __init__(
        self, refusal: str, *, receipt: SettlementReceipt | None = None, raw_message: BaseMessage | None = None
    ) -> None:
        OutputParserException.__init__(
            self, f"The model refused to answer in the requested format: {refusal}", llm_output=refusal
        )
        self.refusal = refusal
        self.raw_message = raw_message
        self.receipt = receipt


def as_model_error(error: OpenGradientError) -> ChatModelError:
    """The same error with the same receipt and cause, as an instance of both families."""
    if isinstance(error, ChatModelError):
        return error
    core_name = _CORE_NAME_BY_KIND.get(error.kind, "ModelError")
    combined = _combined(type(error), _core_class(core_name))(error.message)
    combined.__dict__.update(error.__dict__)
    combined.__cause__ = error.__cause__
    return combined


@contextmanager
def raised_as_model_errors() -> Iterator[None]:
    """Whatever x402 error leaves the block becomes a member of both families on its way."""
    try:
        yield
    except ChatModelError:
        raise
    except OpenGradientError as error:
        raise as_model_error(error).with_traceback(error.__traceback__) from error.__cause__


def _combined(x402_class: type[OpenGradientError], core_class: type[Exception]) -> type[ChatModelError]:
    found = _combinations.get((x402_class, core_class))
    if found is None:
        bases = (ChatModelError, x402_class, core_class)
        namespace = {"__doc__": x402_class.__doc__, "__module__": __name__, "x402_class": x402_class}
        found = cast("type[ChatModelError]", type(x402_class.__name__, bases, namespace))
        found = _combinations.setdefault((x402_class, core_class), found)
    return found


def _x402_class(combined: type[ChatModelError]) -> type[OpenGradientError]:
    return cast("type[OpenGradientError]", getattr(combined, "x402_class", combined))


_combinations: dict[tuple[type, type], type[ChatModelError]] = {}


def _rebuild(x402_class: type[OpenGradientError], message: str, state: dict[str, Any]) -> ChatModelError:
    error = x402_class(message)
    error.__dict__.update(state)
    return as_model_error(error)
