"""Parameters of other chat models that have no meaning, or another name, here; and what users are told then.

Names, ranges and sentences only; both faces ask it when a model is made and when it is called. It does not know the
fields of either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from opengradient_x402.errors import ConfigurationError

_ONE_ANSWER: Final = "A call has one answer. Ask n times (LangChain: `model.batch([prompt] * n)`)."
_WALLET: Final = "Calls are paid by a wallet. Use `private_key`, or set OG_PRIVATE_KEY."
_GATEWAY: Final = "Use `base_url`, which names a gateway that is paid over x402."
_HTTP: Final = "Use `http_client` (and the async one) with an httpx client of your own."
_RESPONSES: Final = "It belongs to OpenAI's Responses API, which gateways do not speak. Send the whole conversation."
_ROUTING: Final = "It is OpenRouter's own. Name the provider in `model`, as in 'anthropic/claude-sonnet-4-6'."
_RANKING: Final = "It is for OpenRouter's rankings. Use `default_headers` if your gateway reads such headers."

CHAT_MEMBERS: Final = frozenset(
    {
        "audio",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
"""Members of a chat completion, by OpenAI's names, that users give beside the messages."""
_RANGES: Final = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "top_logprobs": (0, 20),
}
_LENGTHS: Final = ("max_tokens", "max_completion_tokens")
_WHOLE_NUMBERS: Final = ("seed", "top_k", "top_logprobs", *_LENGTHS)
_SWITCH: Final = (bool, "True or False")
_TEXT: Final = (str, "a text")
_LIST: Final = ((list, tuple), "a list")
_OBJECT: Final = (Mapping, "a dict")
_TYPES: Final[Mapping[str, tuple[type | tuple[type, ...], str]]] = {
    "audio": _OBJECT,
    "logit_bias": _OBJECT,
    "logprobs": _SWITCH,
    "modalities": _LIST,
    "parallel_tool_calls": _SWITCH,
    "prediction": _OBJECT,
    "prompt_cache_key": _TEXT,
    "reasoning": _OBJECT,
    "reasoning_effort": _TEXT,
    "response_format": _OBJECT,
    "safety_identifier": _TEXT,
    "service_tier": _TEXT,
    "tools": _LIST,
    "user": _TEXT,
    "verbosity": _TEXT,
    "web_search": _SWITCH,
}
"""What a member may be, from OpenAI's and OpenRouter's API references."""
_OPENAI: Final = re.compile(r"gpt-(?!oss)|chatgpt-|o\d")
_MOST_BITS: Final = 63
"""Of a whole number, without its sign: what every server can read."""
_MOST_SHOWN: Final = 80
_MOST_BIAS: Final = 100
_MOST_STOPS: Final = 4
_SLIP: Final = 0.85
"""From this similarity on (0 to 1), a name counts as a misspelling of the other one."""

REFUSED: Final = {
    "n": _ONE_ANSWER,
    "openai_api_key": _WALLET,
    "openrouter_api_key": _WALLET,
    "openai_api_base": _GATEWAY,
    "openrouter_api_base": _GATEWAY,
    "openai_organization": "There is no account with a provider. Leave it out.",
    "organization": "There is no account with a provider. Leave it out.",
    "api_version": "There is no Azure deployment behind a gateway. Leave it out.",
    "openai_proxy": "Set HTTPS_PROXY, or use `http_client=httpx.Client(proxy=…)`.",
    "http_socket_options": "Use `http_client=httpx.Client(transport=httpx.HTTPTransport(socket_options=…))`.",
    "root_client": _HTTP,
    "root_async_client": _HTTP,
    "openai_client": _HTTP,
    "async_openai_client": _HTTP,
    "reuse_client": "Connections are always shared, and made anew when they break. Leave it out.",
    "tiktoken_model_name": "Tokens are estimated offline. Use `custom_get_token_ids` for a tokenizer of your own.",
    "include_response_headers": "What a gateway's headers say of a call is on its receipt. Leave it out.",
    "disabled_params": "Give None for a parameter in a call or in `bind`, and it is not sent.",
    "context_management": _RESPONSES,
    "include": _RESPONSES,
    "truncation": _RESPONSES,
    "use_previous_response_id": _RESPONSES,
    "use_responses_api": _RESPONSES,
    "store": "Gateways keep no answers. Keep the message, or use LangSmith.",
    "prompt_cache_options": "Mark what may be cached with `cache_control` on text blocks and tools.",
    "app_url": _RANKING,
    "app_title": _RANKING,
    "app_categories": _RANKING,
    "openrouter_provider": _ROUTING,
    "route": _ROUTING,
    "plugins": f"{_ROUTING} For web search use `web_search=True`.",
    "session_id": "It is for OpenRouter's records. Use `metadata`, `tags` or run ids of your framework.",
    "trace": "It is for OpenRouter's records. Use `metadata`, `tags` or run ids of your framework.",
}
"""Fields of `ChatOpenAI`, `ChatOpenRouter` and LlamaIndex's `OpenAI` that a model here refuses, and what to do."""
_IGNORED: Final = {
    "web_search_options": (
        "Use `web_search=True`, and say in the prompt what to look for. A gateway of your own that reads options gets "
        "them from `extra_body`."
    ),
}
"""Members of a call that gateways do not read, and without which the answer would be another one."""


def is_anthropic(model: object) -> bool:
    """Whether `model` (a name, or an enum member like the OpenGradient SDK's `TEE_LLM`) is served by Anthropic."""
    name = str(getattr(model, "value", model))
    return name.startswith("anthropic/") or name.rpartition("/")[2].startswith("claude")


def is_openai(model: object) -> bool:
    """Whether `model` is one that OpenAI serves itself: others serve its open ones (`gpt-oss`)."""
    name = str(getattr(model, "value", model)).rpartition("/")[2]
    return _OPENAI.match(name) is not None


def check_names(owner: str, given: Iterable[str], *, known: Collection[str]) -> None:
    """Raises ConfigurationError for the first of `given` that is not `known`: no setting is ignored silently."""
    for name in given:
        if name in known:
            continue
        if (remedy := REFUSED.get(name)) is None:
            near = get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            remedy = f"{hint}Members of the request that are no fields go into `extra_body`."
        raise ConfigurationError(f"{owner} takes no {name!r}. Nothing was paid. {remedy}")


def check_call(owner: str, given: Iterable[str], *, known: Collection[str], fields: Collection[str]) -> None:
    """As `check_names`, for what is given to one call: what belongs to the model (`fields`), or is a typing error.

    Members of the request that nobody knows here are sent. Raises ConfigurationError.
    """
    for name in given:
        if name in known:
            continue
        if name in REFUSED:
            check_names(owner, [name], known=())
        if name in _IGNORED:
            raise refused_request(f"{name!r} was given, which gateways ignore. Nothing was paid. {_IGNORED[name]}")
        if name in fields:
            raise refused_request(
                f"{name!r} was given to a call, and only a model has it. Nothing was paid. Make a model with it: "
                f"`{owner}(…, {name}=…)`."
            )
        if (meant := misspelt(name, known)) is not None:
            raise refused_request(
                f"{name!r} was given to a call. Nothing was paid. Did you mean {meant!r}? Members of the request "
                "that only your gateway knows go into `extra_body`."
            )


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is so like that it counts as a misspelling of it."""
    near = get_close_matches(name, known, n=1, cutoff=_SLIP)
    return near[0] if near else None


def check_values(wire: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for values that gateways answer with 400, or cannot read, after the payment
    (docs/wire.md, "What gateways do not do")."""
    _check_types(wire)
    _check_numbers(wire)
    if wire.get("top_logprobs") and not wire.get("logprobs"):
        raise refused_request(
            "top_logprobs was given without logprobs, which providers refuse. Nothing was paid. Set `logprobs=True`."
        )
    for token, bias in (wire.get("logit_bias") or {}).items():
        if not (_is_number(bias) and -_MOST_BIAS <= bias <= _MOST_BIAS):
            raise refused_request(
                f"logit_bias has {_shown(bias)} for {token!r}, and providers take numbers from -100 to 100. "
                "Nothing was paid."
            )
    _check_stop(wire.get("stop"))
    if (wire.get("response_format") or {}).get("type") == "json_object" and is_openai(wire.get("model")):
        _check_json_mode(wire)
    if is_anthropic(wire.get("model")):
        _check_blank(wire)


def _check_types(wire: Mapping[str, Any]) -> None:
    for name, value in wire.items():
        kind, expected = _TYPES.get(name, (object, ""))
        if value is not None and not isinstance(value, kind):
            raise refused_request(
                f"{name}={_shown(value)} was given, and gateways take {expected}. Nothing was paid. Give {expected}."
            )


def _check_numbers(wire: Mapping[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = wire.get(name)
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise refused_request(
                f"{name}={_shown(value)} was given, and gateways take numbers from {least} to {most}. Nothing was "
                f"paid. Give {name} in that range."
            )
    for name in _WHOLE_NUMBERS:
        value = wire.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise refused_request(
                f"{name}={_shown(value)} was given, and gateways take whole numbers. Nothing was paid. Give an integer."
            )
        if value is not None and value.bit_length() > _MOST_BITS:
            raise refused_request(
                f"{name}={_shown(value)} was given, and gateways take whole numbers of at most {_MOST_BITS} bits. "
                "Nothing was paid. Give a smaller one."
            )
        if value is not None and value < 0 and name in _LENGTHS:
            raise refused_request(
                f"{name}={value} was given, and no answer is so short. Nothing was paid. Give at least 1."
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _shown(value: Any) -> str:
    """A value in a message. Python writes no number of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:_MOST_SHOWN]


def _check_stop(stop: Any) -> None:
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, Sequence) or not all(isinstance(one, str) for one in stop):
        raise refused_request(
            f"stop={_shown(stop)} was given, and gateways take texts. Nothing was paid. Give a text or a list of them."
        )
    if len(stop) > _MOST_STOPS:
        raise refused_request(
            f"{len(stop)} stop sequences were given, and gateways take {_MOST_STOPS}. Nothing was paid. Leave "
            "some out, or cut the answer yourself."
        )


def _check_json_mode(wire: Mapping[str, Any]) -> None:
    if not any("json" in text.lower() for message in _messages(wire) for text in _texts(message)):
        raise refused_request(
            "JSON mode was asked for, and no message says 'JSON': OpenAI's models then refuse it, after the payment. "
            "Nothing was paid. Ask for JSON in the prompt, or give a schema (LangChain: method='json_schema')."
        )


def _check_blank(wire: Mapping[str, Any]) -> None:
    for message in _messages(wire):
        texts = _texts(message)
        if message.get("role") == "user" and len(texts) == _parts(message) and not "".join(texts).strip():
            raise refused_request(
                "A user message is blank, which Anthropic's models refuse, after the payment. Nothing was paid. Leave "
                "it out, or say something in it."
            )


def _messages(wire: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = wire.get("messages")
    return [one for one in messages if isinstance(one, Mapping)] if isinstance(messages, Sequence) else []


def _texts(message: Mapping[str, Any]) -> list[str]:
    """The texts in a message, one for each part that is text."""
    content = message.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str):
        return [content or ""]
    return [str(part.get("text") or "") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]


def _parts(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, Sequence) and not isinstance(content, str) else 1


def refused_request(message: str) -> ConfigurationError:
    """The error for a request that gateways cannot serve."""
    return ConfigurationError(message, kind="invalid_request")


def checked_base_url(given: str | None) -> str | None:
    """A gateway's URL without anything that must not be shown: receipts and logs name the gateway by it.

    Raises ConfigurationError, without the URL.
    """
    behind_scheme = (given or "").partition("://")[2] or (given or "")
    if "@" in behind_scheme.partition("/")[0] or {"?", "#"} & set(behind_scheme):
        raise ConfigurationError(
            "`base_url` (OG_GATEWAY_URL, --gateway) holds a user name, a password, or something behind a question "
            "mark. Gateways would not get it, and receipts and logs name a gateway by its URL. Nothing was paid. Leave "
            "it out; what the gateway needs goes into `default_headers`."
        )
    return given


def checked_sender(given: object) -> object:
    """An httpx client or transport as the user gave it. Raises ConfigurationError for anything else."""
    if given is None or any(hasattr(given, name) for name in ("send", "handle_request", "handle_async_request")):
        return given
    raise ConfigurationError(
        f"A {type(given).__name__} cannot send requests. Nothing was paid. Give an httpx client or transport."
    )
