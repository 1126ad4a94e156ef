"""A real model behind the devnet: any server that speaks OpenAI's chat completions, for example Ollama.

Requests are passed on as they are, except for the model's name and the gateway's own fields. A stream passes on
each event as it arrives; closing it closes the connection. Usage is asked for, and estimated when the server gives
none. Nothing is retried: the client who pays decides about that. What the server leaves out is not added.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from opengradient_devnet.model.protocol import Answer, Chunk, Delivery, Model, ModelError, status_for
from opengradient_devnet.model.rules import RulesModel
from opengradient_devnet.model.usage import complete_usage

_AS_WRITTEN = Delivery()
_GATEWAY_FIELDS = frozenset({"web_search", "stream", "stream_options", "model"})
# What the gateway writes itself; a server may not speak for it.
_OWN_MEMBERS = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "error", "completion", "opengradient"}
)
_OWN_PREFIXES = ("tee_", "data_settlement_", "settlement_")
_CHOICE = frozenset({"index", "message", "delta", "finish_reason", "text"})
_BAD_GATEWAY = 502
_LIST_TIMEOUT_S = 5.0
_USUAL_TAG = ":latest"


def open_model(
    upstream: str,
    *,
    api_key: str | None = None,
    keep_provider: bool = False,
    exact_names: Collection[str] = (),
) -> Model:
    """The model that `upstream` names: `"rules"`, `"openai:http://127.0.0.1:11434/v1"`, `"langchain:module:attribute"`.

    `api_key`, `keep_provider` and `exact_names` are for OpenAI-compatible servers, see `UpstreamModel`.

    `"rules:raw"` is the rule model without what live gateways leave out: it does not apply `stop`, and never says
    that an answer ended for its length. Raises ValueError for anything else.
    """
    if upstream in ("rules", "rules:raw"):
        return RulesModel(compensates=upstream == "rules")
    kind, _, place = upstream.partition(":")
    if kind == "langchain":
        from opengradient_devnet.model.langchain_upstream import LangChainModel, load_chat_model

        return LangChainModel(chat=load_chat_model(place))
    if kind != "openai" or not place.startswith(("http://", "https://")):
        raise ValueError(
            f"Unknown upstream {upstream!r}. Use 'rules', 'openai:' and the URL of a server's /v1, or "
            "'langchain:module:attribute'."
        )
    return UpstreamModel(
        base_url=place, api_key=api_key, keep_provider=keep_provider, exact_names=frozenset(exact_names)
    )


@dataclass(slots=True, kw_only=True)
class UpstreamModel:
    """An OpenAI-compatible server as a `Model`. `base_url` ends where `/chat/completions` begins.

    `keep_provider` sends "openai/gpt-5" as it is; by default the server is asked for "gpt-5", unless the name with the
    slash is one of `exact_names`, or one that the server was seen to list (models of Hugging Face have slashes of their
    own). Of a `Delivery` only `pace_s` and `as_message` apply: how answers are cut up is the server's doing.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    keep_provider: bool = False
    exact_names: frozenset[str] = frozenset()
    timeout_s: float = 600.0
    _listed: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    # httpx clients belong to the loop that first used them, and a gateway may serve from several.
    _clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    async def names(self) -> list[str]:
        """The models that the server lists; those of Ollama with the tag `latest` also without it."""
        url = f"{self.base_url.rstrip('/')}/models"
        try:
            response = await self._client().get(url, timeout=_LIST_TIMEOUT_S)
            response.raise_for_status()
            names = [str(item["id"]) for item in response.json()["data"]]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as exc:
            raise ModelError(_BAD_GATEWAY, f"{url} is no list of models: {exc!r}.") from exc
        # Ollama writes the tag of every model, and takes a name without one for `latest`.
        names += [bare for name in names if (bare := name.removesuffix(_USUAL_TAG)) not in names]
        self._listed = frozenset(names)
        return names

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery = _AS_WRITTEN) -> Answer:  # noqa: ARG002 - nothing of it applies
        """Pass the request on and wait for the whole answer."""
        async with self._open(request, is_stream=False) as response:
            body = await response.aread()
        try:
            parsed = json.loads(body)
            choice = parsed["choices"][0]
            message = dict(choice["message"])
        except (ValueError, LookupError, TypeError) as exc:
            raise ModelError(_BAD_GATEWAY, f"{self.base_url} answered with no chat completion.") from exc
        return Answer(
            message=message,
            finish_reason=choice.get("finish_reason") or "stop",
            usage=complete_usage(parsed.get("usage"), request, said=message),
            model=str(request.get("model")),
            choice_members=_choice_members(choice),
            members=_members(parsed),
        )

    async def stream(
        self, request: Mapping[str, Any], *, delivery: Delivery = _AS_WRITTEN
    ) -> AsyncGenerator[Chunk, None]:
        """Pass the request on, and every delta of the answer as soon as it is here."""
        model = str(request.get("model"))
        tally = _Tally()
        async with self._open(request, is_stream=True) as response, aclosing(_events(response)) as events:
            async for event in events:
                delta, beside = tally.take(event)
                if delta or beside:
                    yield Chunk(
                        delta=delta,
                        model=model,
                        as_message=delivery.as_message,
                        choice_members=beside,
                        members=_members(event),
                    )
                    await asyncio.sleep(delivery.pace_s)
        if tally.finish_reason is None:
            raise ModelError(_BAD_GATEWAY, f"{self.base_url} ended its stream in the middle of the answer.")
        yield Chunk(
            delta={},
            model=model,
            finish_reason=tally.finish_reason,
            usage=complete_usage(tally.usage, request, said={"content": tally.said}),
            as_message=delivery.as_message,
            members=tally.members,
        )

    async def aclose(self) -> None:
        """Close this loop's connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def _open(self, request: Mapping[str, Any], *, is_stream: bool) -> AsyncIterator[httpx.Response]:
        """The server's response, its body unread; every way in which it can fail becomes a ModelError."""
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        body = self._body(request, is_stream=is_stream)
        try:
            async with self._client().stream("POST", url, json=body) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(response)
                yield response
        except httpx.ConnectError as exc:
            raise ModelError(503, f"Cannot reach {self.base_url}: {exc}.", is_retryable=True) from exc
        except httpx.TimeoutException as exc:
            raise ModelError(504, f"{self.base_url} took too long ({self.timeout_s:g} s).", is_retryable=True) from exc
        except (httpx.TransportError, httpx.DecodingError) as exc:
            raise ModelError(_BAD_GATEWAY, f"{self.base_url} broke off: {exc!r}.", is_retryable=True) from exc

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            # A proxy from the environment must not get between the devnet and a server on this machine.
            self._clients[loop] = httpx.AsyncClient(headers=headers, timeout=self.timeout_s, trust_env=False)
        return self._clients[loop]

    def _body(self, request: Mapping[str, Any], *, is_stream: bool) -> dict[str, Any]:
        body = {key: value for key, value in request.items() if key not in _GATEWAY_FIELDS}
        asked = str(request.get("model") or "")
        name = asked.partition("/")[2]
        is_exact = self.keep_provider or not name or asked in self.exact_names or asked in self._listed
        body["model"] = asked if is_exact else name
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What a stream has said so far: its text, for estimating usage, and how it ended."""

    said: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    members: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Note one event; its delta and what stands beside it, empty when there is nothing to pass on."""
        if error := event.get("error"):
            raise ModelError(_BAD_GATEWAY, f"The provider broke its stream off: {_message(error)}")
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        self.members |= _members(event)
        choices = event.get("choices") or []
        if not choices:
            return {}, {}
        self.finish_reason = choices[0].get("finish_reason") or self.finish_reason
        delta = choices[0].get("delta") or choices[0].get("message") or {}
        self.said += "".join(str(delta.get(part) or "") for part in ("content", "reasoning_content", "refusal"))
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            self.said += str(function.get("name") or "") + str(function.get("arguments") or "")
        return {key: value for key, value in delta.items() if value is not None}, _choice_members(choices[0])


def _members(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in event.items()
        if value is not None and name not in _OWN_MEMBERS and not name.startswith(_OWN_PREFIXES)
    }


def _choice_members(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if value is not None and name not in _CHOICE}


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON events of a server-sent event stream, up to `[DONE]` or its end."""
    async for line in response.aiter_lines():
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as exc:
            raise ModelError(_BAD_GATEWAY, f"The provider sent an event that is not JSON: {data[:80]!r}") from exc
        if isinstance(event, dict):
            yield event


def _refusal(response: httpx.Response) -> ModelError:
    try:
        message = _message(response.json().get("error"))
    except (ValueError, AttributeError):
        message = response.text[:200]
    status, is_retryable = status_for(response.status_code)
    return ModelError(
        status,
        f"The provider refused with {response.status_code}: {message}",
        provider_status=response.status_code,
        is_retryable=is_retryable,
    )


def _message(error: object) -> str:
    return str(error.get("message") or error) if isinstance(error, Mapping) else str(error)
