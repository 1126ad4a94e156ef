"""A request before it is paid: the model's name, and what gateways cannot do.

`prepared` refuses what a gateway would charge for and not do, translates what it reads under another name, and warns
of what it may ignore; `check_answer` warns when the answer shows that it did. `ModelDirectory` finds the name under
which a gateway serves a model: gateways answer an unknown one only after they were paid. Both faces and the command
line send what comes out of here. Sans-I/O; does not know prices or the message types of frameworks.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.completions import Completion
from opengradient_x402.effects import Steps
from opengradient_x402.errors import UnknownModel
from opengradient_x402.gateway.endpoints import Endpoint, EndpointSource, fetch, reach
from opengradient_x402.models import find_model, nearest_models, wire_name
from opengradient_x402.parameters import check_values, is_anthropic, refused_request

GATEWAY_MAX_TOKENS: Final = 4096
"""The longest answer of a call that sets no `max_tokens`: gateways read its absence so (docs/wire.md, "Limits")."""
_TIMEOUT_S: Final = 10.0
_NOT_ALWAYS_FORWARDED: Final = ("seed", "top_p", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty")
_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST_NAME: Final = 64  # OpenAI API reference, `tools[].function.name`
_NAMES_BY_PROVIDER: Final = (
    ("claude", re.compile(r"[a-zA-Z0-9_-]{1,128}")),
    ("gemini", re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")),
    ("", re.compile(rf"[a-zA-Z0-9_-]{{1,{_LONGEST_NAME}}}")),
)
"""Names of tools that the providers take, by what the names of their models begin with (their API references)."""
_LISTED: Final = 10
"""So many models are named to somebody who asked for another one."""
_ROLES: Final = ("system", "user", "assistant", "tool")
_ANY: Final = ("any", "required")
_OF_OTHER_APIS: Final = {
    name: remedy
    for names, remedy in {
        ("previous_response_id", "conversation", "input", "instructions", "background", "use_responses_api"): (
            "It belongs to OpenAI's Responses API, which keeps conversations. Send the whole conversation as messages."
        ),
        ("functions", "function_call"): "It is OpenAI's older form of tools. Use `tools` and `tool_choice`.",
        ("extra_query", "default_query"): "Give it to the call or the model, not to the body of the request.",
        ("private_key", "api_key", "spend_policy", "settlement_mode", "verify_tee", "base_url", "ledger", "rpc_url"): (
            "It says who pays, or how, and is no member of a request. Nothing was sent. Leave it out of the body."
        ),
    }.items()
    for name in names
}
"""Members of a request that gateways ignore, so that the answer would be wrong; and what to write instead."""
_NOT_IN_A_SPEAKER: Final = re.compile(r"[\s<|\\/>]")  # OpenAI API reference, `messages[].name`
_ANY_OBJECT: Final = {"type": "json_schema", "json_schema": {"name": "json_object", "schema": {"type": "object"}}}


class GatewayLimitation(UserWarning):
    """A gateway may not do, or visibly did not do, what the call asked for."""


class UnlistedModelWarning(UserWarning):
    """A model could not be checked before paying: it is neither in the catalog nor in the gateway's list."""


def prepared(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent for `body`: members that are None are left out, and the rest is as gateways read it.

    Raises ConfigurationError for what no gateway does, before anything is paid. Warns with GatewayLimitation.
    """
    wire = {name: value for name, value in body.items() if value is not None}
    _refuse(wire)
    _check_contents(wire.get("messages"))
    check_values(wire)
    _check_conversation(wire)
    if (limit := wire.pop("max_completion_tokens", None)) is not None:
        wire["max_tokens"] = limit
    if isinstance(stop := wire.get("stop"), Sequence) and not isinstance(stop, str):
        wire["stop"] = [sequence for sequence in stop if sequence]  # an empty one ends every answer before it starts
    without = ("stop", "tools", "web_search", *(() if wire.get("logprobs") else ("top_logprobs",)))
    for empty in [name for name in without if not wire.get(name)]:
        wire.pop(empty, None)
    _tidy_tools(wire)
    response_format = wire.get("response_format")
    is_json_mode = isinstance(response_format, Mapping) and response_format.get("type") == "json_object"
    if is_json_mode and is_anthropic(wire.get("model")):
        wire["response_format"] = _ANY_OBJECT  # Anthropic's models refuse `json_object`, which means the same
    for name in _NOT_ALWAYS_FORWARDED:
        if name in wire:
            _warn(
                f"{name} is sent, but some gateways do not forward it to the provider: the answer may not reflect it."
            )
    return wire


def check_answer(body: Mapping[str, Any], completion: Completion) -> None:
    """Warns when the answer to the prepared `body` shows that `tool_choice` was not obeyed."""
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none") or completion.tool_calls:
        return
    if completion.refusal or completion.finish_reason in ("length", "content_filter"):
        return  # which says enough
    _warn(
        f"tool_choice={choice!r} was asked for and {body.get('model')} answered without a tool call: this gateway does "
        "not forward tool_choice. Ask for the tool in the prompt, or use another model."
    )


def wire_role(role: str) -> str:
    """A role as gateways know it: `developer`, OpenAI's newer name for `system`, makes them fail after the payment."""
    return "system" if role == "developer" else role


def with_wire_roles(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of an OpenAI client, with roles as gateways know them."""
    return [one | {"role": wire_role(one["role"])} if "role" in one else one for one in messages]


def wire_tool_name(name: str) -> str:
    """`name` for a tool or a schema as every provider takes it: `Box[int]` becomes `Box_int_`.

    What would be lost on the way, letters of other scripts and everything after the 64th character, is kept apart
    by a hash of the name.
    """
    wire = _NOT_IN_A_NAME.sub("_", name)
    if name.isascii() and len(name) <= _LONGEST_NAME:
        return wire
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{wire[: _LONGEST_NAME - 1 - len(mark)]}_{mark}"


def wire_tool_names(names: Sequence[str]) -> dict[str, str]:
    """Each of `names` with its name on the wire. Raises ConfigurationError when two tools would have the same one."""
    wire: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in names:
        wire[name] = wire_tool_name(name)
        if owners.setdefault(wire[name], name) != name:
            raise refused_request(
                f"The tools {owners[wire[name]]!r} and {name!r} have the same name in the letters that providers take "
                f"({wire[name]!r}), so a call could mean either. Nothing was paid. Rename one of them."
            )
    return wire


def chosen(tools: Sequence[Mapping[str, Any]], choice: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The members of a request that say which of `tools` may be called, and whether one has to be.

    As `wire_tool_choice`, and for two choices that gateways do not know: OpenAI's `allowed_tools` leaves the others
    out, Anthropic's `disable_parallel_tool_use` becomes `parallel_tool_calls`.
    """
    said: dict[str, Any] = {"tools": list(tools)}
    if isinstance(choice, Mapping):
        if choice.get("disable_parallel_tool_use"):
            said["parallel_tool_calls"] = False
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            listed = [one.get("function", one).get("name") for one in allowed.get("tools") or ()]
            wire = [wire_tool_choice(name, names) for name in listed]
            kept = [one["function"]["name"] for one in wire if isinstance(one, Mapping)]
            if not kept:
                raise refused_request("tool_choice allows no tool. Nothing was paid. Name some, or use 'none'.")
            said["tools"] = [tool for tool in tools if tool["function"]["name"] in kept]
            choice = allowed.get("mode", "auto")
    if (wire_choice := wire_tool_choice(choice, names)) is not None:
        said["tool_choice"] = wire_choice
    return said


def wire_tool_choice(choice: Any, names: Mapping[str, str]) -> str | dict[str, Any] | None:
    """`tool_choice` as the gateways read it; None when the model is free to choose.

    "any", "required" and True force some tool, a name or a function dict forces that one. `names` are the tools: what
    the caller calls each, and its name on the wire. Raises ConfigurationError when the forced tool is none of them:
    the call could only fail, after it was paid. `chosen` reads the choices that say more than one thing.
    """
    if choice is None or choice is False:
        return None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        forced = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        choice = forced if forced is not None else choice.get("type")  # Anthropic's spelling: {"type": "any"}
        if not isinstance(forced, str) and choice not in (*_ANY, "auto", "none"):
            raise refused_request(
                f"tool_choice names no tool ({choice!r}). Nothing was paid. "
                'Use {"type": "function", "function": {"name": …}}, a tool\'s name, "any", "auto" or "none".'
            )
    if choice is True or choice in _ANY:
        return "required"
    if choice in ("auto", "none"):
        return str(choice)
    if not isinstance(choice, str) or (wire := names.get(choice, choice)) not in names.values():
        tools = f"the tools are {sorted(names)}" if names else "there are no tools"
        raise refused_request(
            f"tool_choice names {choice!r}, and {tools}. Nothing was paid. "
            "Force one of the given tools, or use 'any', 'auto' or 'none'."
        )
    return {"type": "function", "function": {"name": wire}}


def _refuse(wire: dict[str, Any]) -> None:
    if given := sorted(name for name in _OF_OTHER_APIS.keys() & wire.keys() if wire[name]):
        remedy = _OF_OTHER_APIS[given[0]]
        raise refused_request(f"{given[0]!r} was given, which gateways do not read. Nothing was paid. {remedy}")
    if wire.pop("n", 1) != 1:
        raise refused_request(
            "n > 1 was asked for, and the gateways give one answer a call. Nothing was paid. Ask n times (LangChain: "
            "`model.batch([prompt] * n)`): each answer is then paid and receipted by itself."
        )
    if wire.pop("stream", False):
        raise refused_request(
            "`stream` was given as a parameter, and whether a call streams is decided by the method. Nothing was paid. "
            "Call the method that streams (`stream`, `stream_chat`, `stream_complete`)."
        )


def _check_contents(messages: Any) -> None:
    """Raises ConfigurationError for messages that are none, and for contents that are neither text nor parts.

    Only the assistant may say nothing.
    """
    if not _is_list(messages) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise refused_request(
            f"The messages are {messages!r:.80}, and gateways take a list of at least one message, each with a role "
            "and a content: they fail after the payment. Nothing was paid. Give the call its conversation."
        )
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) and not _is_list(content) and not (content is None and role == "assistant"):
            raise refused_request(
                f"A message of the {role} has the content {content!r:.80}, and gateways take text or a list of parts: "
                "they fail after the payment. Nothing was paid. Give the message a text, or leave it out."
            )
        for part in () if isinstance(content, str) else content or ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
                raise refused_request(
                    f"A message of the {role} has the part {part!r:.80}, and providers take parts that say their type, "
                    'such as {"type": "text", "text": "…"}. Nothing was paid. Correct the part, or leave it out.'
                )
        calls = message.get("tool_calls") or ()
        if not _is_list(calls) or not all(map(_is_call, calls)):
            raise refused_request(
                f"A message of the {role} has the tool calls {calls!r:.80}, and gateways read OpenAI's: "
                "an id and a function with a name. Nothing was paid. Correct the calls, or leave them out."
            )


def _is_call(value: Any) -> bool:
    function = value.get("function") if isinstance(value, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _check_conversation(wire: dict[str, Any]) -> None:
    """Messages as providers take them: known roles, names without blanks, and a result for each tool call."""
    messages = wire["messages"]
    for message in messages:
        if (role := message.get("role")) not in _ROLES:
            raise refused_request(
                f"A message has the role {role!r}, which gateways cannot read: they fail after the payment. Nothing "
                "was paid. Use system, user, assistant and tool messages (OpenAI's `developer` is `system` here)."
            )
    wire["messages"] = [_tidy_message(message) for message in messages]
    waiting: dict[str, str] = {}
    known: set[str] = set()
    for message in messages:
        if message.get("role") != "tool":
            _check_answered(waiting)
            calls = message.get("tool_calls") or ()
            waiting = {call.get("id") or "": call["function"]["name"] for call in calls}
            known = set(waiting)
        elif (call_id := message.get("tool_call_id") or "") in known:
            waiting.pop(call_id, None)
        else:
            raise refused_request(
                f"A tool message answers the call {call_id!r}, which the assistant's message before it does not hold. "
                "Providers refuse such a conversation. Nothing was paid. Send the assistant's message with its calls, "
                "or leave the tool message out."
            )
    _check_answered(waiting)


def _check_answered(waiting: Mapping[str, str]) -> None:
    for call_id, name in waiting.items():
        raise refused_request(
            f"The assistant called {name!r} ({call_id!r}), and no tool message after it has the result. Providers "
            "refuse such a conversation. Nothing was paid. Add the result (also of a call that failed or was "
            "cancelled), or leave the call out."
        )


def _tidy_message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message without names on which gateways fail after the payment."""
    if (name := message.get("name")) and (plain := _NOT_IN_A_SPEAKER.sub("_", str(name))[:_LONGEST_NAME]) != name:
        return {**message, "name": plain}
    return message


def _tidy_tools(wire: dict[str, Any]) -> None:
    """Removes what is said about tools where there are none; a choice has to be one of the tools."""
    if "tools" not in wire:
        wire_tool_choice(wire.pop("tool_choice", None), {})
        wire.pop("parallel_tool_calls", None)
        return
    tools = [_wire_tool(tool) for tool in wire["tools"]]
    names = [tool["function"].get("name", "") for tool in tools]
    _check_tool_names(names, model=str(wire.get("model", "")))
    wire.update(chosen(tools, wire.pop("tool_choice", None), {name: name for name in names}))


def _check_tool_names(names: Sequence[str], *, model: str) -> None:
    """Raises ConfigurationError for names that providers refuse after the payment: bad ones, and one given twice."""
    plain = model.rpartition("/")[2]
    allowed = next(pattern for begins, pattern in _NAMES_BY_PROVIDER if plain.startswith(begins))
    for name in names:
        if not allowed.fullmatch(name):
            raise refused_request(
                f"A tool is named {name!r}, and {model or 'the model'} takes names of at most {_LONGEST_NAME} letters, "
                "digits, '_' and '-' only. Nothing was paid. Give the tool another name."
            )
        if names.count(name) > 1:
            raise refused_request(
                f"Two tools are named {name!r}, so a call could mean either. Nothing was paid. Rename one of them."
            )


def _wire_tool(tool: Any) -> Mapping[str, Any]:
    """A function tool as chat completions have it; the Responses API writes its members beside the type."""
    if not isinstance(tool, Mapping):
        raise refused_request(
            f"A tool is given as {type(tool).__name__}, and gateways read JSON. Nothing was paid. LangChain: "
            "`model.bind_tools([…])`; LlamaIndex: `llm.chat_with_tools([…], …)`."
        )
    if isinstance(tool.get("function"), Mapping):
        return tool
    if not isinstance(tool.get("name"), str) or tool.get("type", "function") != "function":
        raise refused_request(
            f"A tool of type {tool.get('type')!r} is no function, and the gateways offer no other tool but web search "
            "(`web_search=True`). Nothing was paid. Give a function in its place."
        )
    members = {name: value for name, value in tool.items() if name not in ("type", "cache_control")}
    kept = {"cache_control": tool["cache_control"]} if "cache_control" in tool else {}
    return {"type": "function", "function": members, **kept}


def _warn(message: str) -> None:
    warnings.warn(message, GatewayLimitation, stacklevel=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The names that a gateway serves, and its price of one token of the asset (a claim), if it tells."""

    gateway: str = "The gateway"
    names: frozenset[str] = frozenset()
    opg_price_usd: Any = None


class ModelDirectory:
    """Names that the gateways of one source serve. Thread-safe: the worst race looks a name up twice."""

    def __init__(self, endpoints: EndpointSource) -> None:
        self._endpoints = endpoints
        self._known: dict[str, str] = {}

    def resolve(self, name: str) -> Steps[str]:
        """The wire name. May yield one request for the gateway's list, and takes its response, with the body read.

        Raises UnknownModel when the gateway lists its models and this is not one of them.
        """
        if (known := self._known.get(name)) is not None:
            return known
        if not name:
            raise UnknownModel("No model was named. Nothing was paid. Give one, for example 'openai/gpt-5'.")
        wire = wire_name(name)
        info = find_model(name)
        if info is None or info.is_deprecated:
            listing = yield from self.listing()
            listed = listing.names
            if not listed:
                _warn_unlisted(name, listing.gateway, is_deprecated=info is not None)
            # A gateway of one's own may have any provider's name before its models, and list them without.
            spellings = (name, wire, name.partition("/")[2], name.rpartition("/")[2])
            names = [spelling for spelling in spellings if spelling in listed]
            if names:
                wire = names[0]
            elif listed:
                raise _unserved(name, listing)
        self._known[name] = wire
        return wire

    def listing(self) -> Steps[Listing]:
        """What the gateway says about its models: one request. Empty when it says nothing."""
        try:
            return (yield from reach(self._endpoints, self._ask))
        except httpx.TransportError:
            return Listing()

    def _ask(self, endpoint: Endpoint) -> Steps[Listing]:
        request = endpoint.query("/v1/models", timeout_s=_TIMEOUT_S)
        response = yield from fetch(request, timeout_s=_TIMEOUT_S)
        return _listing(endpoint.base_url, response)


def _unserved(name: str, listing: Listing) -> UnknownModel:
    close = get_close_matches(name, listing.names, n=3, cutoff=0.5) or nearest_models(name)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    count = len(listing.names)
    serves = (
        f"It serves: {', '.join(sorted(listing.names))}."
        if count <= _LISTED
        else f"It serves {count} models: `opengradient-x402 models --live` lists them."
    )
    return UnknownModel(f"{listing.gateway} does not serve a model {name!r}. Nothing was paid.{hint} {serves}")


def _warn_unlisted(name: str, gateway: str, *, is_deprecated: bool) -> None:
    about = ", and it is deprecated: neither the newest SDK nor the newest gateway knows it" if is_deprecated else ""
    close = nearest_models(name)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    warnings.warn(
        f"{gateway} does not list its models, so {name!r} could not be checked before paying{about}. Gateways refuse "
        f"unknown models only after the payment.{hint}",
        UnlistedModelWarning,
        stacklevel=2,
    )


def _listing(gateway: str, response: httpx.Response) -> Listing:
    if response.status_code != httpx.codes.OK:
        return Listing(gateway=gateway)
    try:
        document = strict_json.loads(response.content)
        names = frozenset(str(entry["id"]) for entry in document["data"])
        return Listing(gateway=gateway, names=names, opg_price_usd=document.get("opg_price_usd"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Listing(gateway=gateway)
