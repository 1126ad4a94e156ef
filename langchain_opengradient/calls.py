"""One call's request: fields of the model, per-call keywords and messages -> a chat-completions body.

Also says, visibly, where gateways are known not to do what was asked. Pure; it does not know how the body is
sent or paid, nor what comes back.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage

from langchain_opengradient.messages import to_wire
from langchain_opengradient.structured_output import to_response_format
from opengradient_x402.completions import Completion
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.settlement_mode import SettlementMode

_NOT_ALWAYS_FORWARDED: Final = ("seed", "top_p", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty")
_FOR_LANGCHAIN_ONLY: Final = (
    "ls_structured_output_format",
    "run_manager",
    "stream",
    "stream_options",
    "stream_usage",
    "structured_output_format",
)


class GatewayLimitation(UserWarning):
    """A gateway may not do, or visibly did not do, what the call asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """What one call sends, and how."""

    body: dict[str, Any]
    settlement_mode: SettlementMode | None
    timeout_s: float | None
    headers: Mapping[str, str] | None

    @property
    def model_name(self) -> str:
        """The model that was asked for, as the caller wrote it."""
        return str(self.body["model"])

    def served_model_name(self, completion: Completion) -> str:
        """The model that answered; under the caller's name for it when both mean the same model."""
        asked, answered = self.model_name, completion.model
        same = not answered or _bare(asked) == _bare(answered)
        return asked if same else answered

    def check_answer(self, completion: Completion) -> None:
        """Warn when the answer shows that `tool_choice` was not obeyed."""
        choice = self.body.get("tool_choice")
        if choice in (None, "auto", "none") or completion.tool_calls or completion.finish_reason == "length":
            return
        warnings.warn(
            f"tool_choice={choice!r} was asked for and {self.model_name} answered without a tool call: this "
            "gateway does not forward tool_choice. Ask for the tool in the prompt, or use another model.",
            GatewayLimitation,
            stacklevel=2,
        )


def build_call(messages: Sequence[BaseMessage], *, defaults: Mapping[str, Any], kwargs: Mapping[str, Any]) -> ChatCall:
    """The call for `messages`. `kwargs` of the call win over the model's `defaults`; None means "leave out".

    Raises ConfigurationError or UnsupportedContent before anything is sent.
    """
    if not messages:
        raise ConfigurationError(
            "There are no messages to answer. Nothing was sent or paid. Give the model at least one.",
            kind="invalid_request",
        )
    given = {**defaults, **{key: value for key, value in kwargs.items() if value is not None}}
    for key in _FOR_LANGCHAIN_ONLY:
        given.pop(key, None)
    mode = given.pop("x402_settlement_mode", None) or given.pop("settlement_mode", None)
    given.pop("settlement_mode", None)
    timeout = given.pop("timeout", None)
    headers = given.pop("extra_headers", None)
    extra_body = given.pop("extra_body", None) or {}
    body: dict[str, Any] = {"model": model_name(given.pop("model")), "messages": to_wire(messages)}
    body.update((key, value) for key, value in given.items() if value is not None)
    body.update(extra_body)
    _tidy(body)
    return ChatCall(
        body=body,
        settlement_mode=None if mode is None else SettlementMode.parse(mode),
        timeout_s=None if timeout is None else float(timeout),
        headers=headers,
    )


def model_name(model: Any) -> str:
    """A model's name from a string, or from an enum member like the OpenGradient SDK's `TEE_LLM`."""
    return str(getattr(model, "value", model))


def _tidy(body: dict[str, Any]) -> None:
    if (limit := body.pop("max_completion_tokens", None)) is not None:
        body["max_tokens"] = limit
    if isinstance(stop := body.get("stop"), Sequence) and not isinstance(stop, str):
        body["stop"] = [sequence for sequence in stop if sequence]  # an empty one ends every answer before it starts
    for empty in [name for name in ("stop", "tools", "web_search") if not body.get(name)]:
        body.pop(empty, None)
    if "tools" not in body:
        body.pop("tool_choice", None)
        body.pop("parallel_tool_calls", None)
    if (response_format := body.pop("response_format", None)) is not None:
        body["response_format"] = _suitable_format(body["model"], response_format)
    _refuse_or_warn(body)


def _refuse_or_warn(body: dict[str, Any]) -> None:
    if body.pop("n", 1) != 1:
        raise ConfigurationError(
            "n > 1 was asked for, and the gateways give one answer a call. Nothing was paid. "
            "Use `model.batch([prompt] * n)`: each answer is then paid and receipted by itself.",
            kind="invalid_request",
        )
    for name in _NOT_ALWAYS_FORWARDED:
        if name in body:
            warnings.warn(
                f"{name} is sent, but some gateways do not forward it to the provider: the answer may not reflect it.",
                GatewayLimitation,
                stacklevel=2,
            )


def _suitable_format(model: str, response_format: Any) -> Any:
    """Anthropic's models refuse `json_object` and take `json_schema`; any object is what the former means."""
    if isinstance(response_format, type):
        return to_response_format(response_format)
    is_json_mode = isinstance(response_format, Mapping) and response_format.get("type") == "json_object"
    if not (is_json_mode and is_anthropic(model)):
        return response_format
    return {"type": "json_schema", "json_schema": {"name": "json_object", "schema": {"type": "object"}}}


def is_anthropic(model: str) -> bool:
    """Whether `model` is served by Anthropic."""
    return model.startswith("anthropic/") or _bare(model).startswith("claude")


def _bare(model: str) -> str:
    return model.rpartition("/")[2]
