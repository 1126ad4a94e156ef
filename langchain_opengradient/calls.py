"""One call's request: fields of the model, per-call keywords and messages -> a chat-completions body.

Pure; it does not know how the body is sent or paid, what gateways cannot do (`opengradient_x402.gateway.request`
does), nor what comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from langchain_opengradient.messages import to_wire
from langchain_opengradient.structured_output import to_response_format
from opengradient_x402.completions import Completion
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.http.time_limits import Timeout
from opengradient_x402.parameters import CHAT_MEMBERS, check_call
from opengradient_x402.settlement_mode import SettlementMode

IN_THE_BODY: Final = (
    "temperature",
    "max_tokens",
    "stop",
    "top_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "reasoning",
    "verbosity",
    "service_tier",
)
"""The fields that are members of every request's body."""
REQUEST_PARAMETERS: Final = frozenset(
    {
        "audio",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "response_format",
        "safety_identifier",
        "tool_choice",
        "top_k",
        "user",
    }
)
"""Further members of a chat completion that users give to the constructor: there they join `model_kwargs`."""
OLDER_NAMES: Final = {
    "api_key": "private_key",
    "max_completion_tokens": "max_tokens",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
_FOR_LANGCHAIN_ONLY: Final = (
    "ls_structured_output_format",
    "run_manager",
    "stream",
    "stream_options",
    "stream_usage",
    "structured_output_format",
)
_HOW: Final = frozenset(
    {"model", "settlement_mode", "x402_settlement_mode", "timeout", "stream_chunk_timeout", "web_search"}
)
_MERGED: Final = ("extra_headers", "extra_query", "extra_body")
"""What a call adds to what the model has of it."""
_OF_A_CALL: Final = CHAT_MEMBERS.union(_FOR_LANGCHAIN_ONLY, _HOW, _MERGED)
_DECIDED_BY_THE_METHOD: Final = ("messages", "stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """The body of one request, and the options with which the gateway client sends it."""

    body: dict[str, Any]
    settlement_mode: SettlementMode | None
    timeout_s: Timeout | None
    chunk_timeout_s: float | None
    headers: Mapping[str, str] | None
    query: Mapping[str, object] | None

    def served_model_name(self, completion: Completion) -> str:
        """The name of the model that answered: the caller's name, if both names mean the same model."""
        asked, answered = str(self.body["model"]), completion.model
        same = not answered or asked.rpartition("/")[2] == answered.rpartition("/")[2]
        return asked if same else answered


def check_members(owner: str, names: Iterable[str], *, fields: Collection[str]) -> None:
    """Raises ConfigurationError for members of every request (`model_kwargs`) that a request cannot have."""
    for name in _DECIDED_BY_THE_METHOD:
        if name in names:
            raise ConfigurationError(
                f"model_kwargs has {name!r}, which each call decides. Nothing was paid. Leave it out (`streaming=True` "
                "streams inside `invoke`)."
            )
    check_call(owner, names, known=_OF_A_CALL, fields=fields)


def checked_keywords(owner: type[BaseModel], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What was given to one call of an `owner`, under today's names.

    Raises ConfigurationError for what only a model has, for slips of the pen, and for two values of one thing.
    """
    renamed = dict(kwargs)
    for older, name in OLDER_NAMES.items():
        if older not in renamed or older == "api_key":
            continue
        value = renamed.pop(older)
        if renamed.get(name) not in (None, value):
            raise ConfigurationError(
                f"{older}={value!r} and {name}={renamed[name]!r} were both given. Nothing was paid. Keep one of them.",
                kind="invalid_request",
            )
        renamed[name] = value
    check_call(owner.__name__, renamed, known=_OF_A_CALL, fields={*owner.model_fields, *OLDER_NAMES})
    return renamed


def build_call(messages: Sequence[BaseMessage], *, defaults: Mapping[str, Any], kwargs: Mapping[str, Any]) -> ChatCall:
    """The call for `messages`. `kwargs` of the call win over the model's `defaults`; None leaves a member out.

    Raises ConfigurationError or UnsupportedContent before anything is sent.
    """
    if not messages:
        raise ConfigurationError(
            "There are no messages to answer. Nothing was sent or paid. Give the model at least one.",
            kind="invalid_request",
        )
    # How a call is made, and which model it asks, cannot be left out: None means "as the model has it".
    given = {**defaults, **{key: value for key, value in kwargs.items() if value is not None or key not in _HOW}}
    for key in _FOR_LANGCHAIN_ONLY:
        given.pop(key, None)
    mode = given.pop("x402_settlement_mode", None) or given.pop("settlement_mode", None)
    given.pop("settlement_mode", None)
    timeout, chunk_timeout = given.pop("timeout", None), given.pop("stream_chunk_timeout", None)
    merged = {name: {**(defaults.get(name) or {}), **(given.pop(name, None) or {})} for name in _MERGED}
    if isinstance(response_format := given.get("response_format"), type):
        given["response_format"] = to_response_format(response_format)
    body: dict[str, Any] = {"model": model_name(given.pop("model")), "messages": to_wire(messages)}
    body.update((key, value) for key, value in given.items() if value is not None)
    body.update(merged["extra_body"])
    return ChatCall(
        body=body,
        settlement_mode=None if mode is None else SettlementMode.parse(mode),
        timeout_s=timeout,
        chunk_timeout_s=chunk_timeout,
        headers=merged["extra_headers"] or None,
        query=merged["extra_query"] or None,
    )


def model_name(model: Any) -> str:
    """A model's name from a string, or from an enum member like the OpenGradient SDK's `TEE_LLM`."""
    return str(getattr(model, "value", model))
