"""What an answer carries beside text, calls and usage: logprobs, citations, audio, fingerprints, reasoning details.

Gateways pass on all that a provider says, so everything is kept that nothing else here reads. In a stream it comes
in pieces: lists grow (elements with one `index` are one element), texts grow, and other values replace earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opengradient_x402.strict_json import whole_characters

_READ_IN_A_MESSAGE: Final = frozenset(
    {"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls", "images", "function_call"}
)
_READ_IN_A_CHOICE: Final = frozenset({"index", "message", "delta", "text", "finish_reason", "logprobs"})
_READ_IN_A_RESPONSE: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "images", "error", "opengradient"}
)
_NO_PART_OF_THE_ANSWER: Final = ("tee_", "data_settlement_", "x402")
"""The enclave's proof and the gateway's claims: they are on the receipt."""
_GROWS: Final = frozenset({"data", "transcript", "text", "summary", "content", "thinking", "refusal"})


def message_extras(piece: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a message (or delta) that are not read elsewhere."""
    if piece.keys() <= _READ_IN_A_MESSAGE:
        return {}
    return {name: value for name, value in piece.items() if name not in _READ_IN_A_MESSAGE and value is not None}


def choice_extras(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a choice that are not read elsewhere: how a filter judged it, the provider's word for its end."""
    return {name: value for name, value in choice.items() if name not in _READ_IN_A_CHOICE and value is not None}


def response_extras(event: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a response (or stream event) that are not read elsewhere."""
    if event.keys() <= _READ_IN_A_RESPONSE:
        return {}
    return {
        name: value
        for name, value in event.items()
        if name not in _READ_IN_A_RESPONSE and not name.startswith(_NO_PART_OF_THE_ANSWER) and value is not None
    }


def grow(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds what a further piece says to what is known."""
    for name, value in more.items():
        before = known.get(name)
        if isinstance(before, dict) and isinstance(value, Mapping):
            grow(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            _extend(before, value)
        elif name in _GROWS and isinstance(before, str) and isinstance(value, str):
            known[name] = before + value
        elif value is not None:
            known[name] = value


def _extend(known: list[Any], more: list[Any]) -> None:
    """Elements of `more` that have the index of a known one, and its type, belong to that one."""
    for element in more:
        index = element.get("index") if isinstance(element, Mapping) else None
        same = [
            one
            for one in known
            if index is not None
            and isinstance(one, dict)
            and (one.get("index"), one.get("type")) == (index, element.get("type"))
        ]
        if same:
            grow(same[0], element)
        else:
            known.append(element)


def copied(value: Any) -> Any:
    """A copy that can grow. Half a character at the end of a text waits in it for the other half."""
    if isinstance(value, Mapping):
        return {str(name): copied(inner) for name, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def cleaned(value: Any) -> Any:
    """The value with whole characters only, so that it can be written as JSON again."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {whole_characters(str(name)): cleaned(inner) for name, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value
