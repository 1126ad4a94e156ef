"""Any LangChain chat model behind the devnet's gateway: `--upstream langchain:module:attribute`.

The attribute is a chat model, or something that makes one when it is called without arguments:

    # my_models.py
    from langchain_ollama import ChatOllama
    model = ChatOllama(model="llama3.2")

    opengradient-devnet --upstream langchain:my_models:model --prices prices.json

Messages, tools and the usual parameters go in as OpenAI writes them; text, reasoning, tool calls and usage come
out that way. Usage is estimated when the model gives none (set `stream_usage=True` where a model has it). The model
name of a request is ignored, because there is only one model; the price list says under which names it is sold. What
the model leaves out is not added.

This is the only module that imports LangChain, and it imports langchain-core only when it is used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opengradient_devnet.model.protocol import Answer, Chunk, Delivery, ModelError, status_for
from opengradient_devnet.model.usage import complete_usage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.runnables import Runnable

_AS_WRITTEN = Delivery()
# What is handed to the model as it is; chat models take these as keyword arguments, under these names.
_PARAMETERS = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "response_format", "stop")
# Where LangChain's models keep what OpenAI has in a message, in a choice, and beside the choices.
_MESSAGE_MEMBERS = ("refusal", "annotations", "audio", "reasoning_details")
_CHOICE_MEMBERS = ("logprobs",)
_MEMBERS = ("system_fingerprint", "service_tier", "citations")
_BAD_GATEWAY = 502
# Providers' words for the two endings that are not "stop" (OpenAI, Anthropic, Gemini, Ollama).
_CUT = frozenset({"length", "max_tokens", "model_length"})
_FILTERED = frozenset({"content_filter", "safety", "refusal", "prohibited_content"})


def load_chat_model(reference: str) -> BaseChatModel:
    """The chat model at `module:attribute`; raises ValueError with what is wrong with the reference."""
    try:
        from langchain_core.language_models import BaseChatModel
    except ImportError as exc:
        raise ValueError("A LangChain upstream needs langchain-core: pip install langchain-core") from exc
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"{reference!r} does not say where the model is; write langchain:module:attribute.")
    try:
        found: object = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as exc:
        raise ValueError(f"There is no chat model at {reference!r}: {exc}.") from exc
    if not isinstance(found, BaseChatModel) and callable(found):
        found = found()
    if not isinstance(found, BaseChatModel):
        message = f"{reference!r} is a {type(found).__name__}, not a LangChain chat model."
        raise ValueError(message)  # noqa: TRY004 - what is wrong is the reference, which is a value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LangChainModel:
    """A LangChain chat model as a `Model`. Of a `Delivery` only `pace_s` and `as_message` apply."""

    chat: BaseChatModel

    async def names(self) -> list[str]:
        """What the model calls itself, if it does."""
        given = (getattr(self.chat, field, None) for field in ("model_name", "model"))
        return [name.removeprefix("models/") for name in given if isinstance(name, str) and name][:1]

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery = _AS_WRITTEN) -> Answer:  # noqa: ARG002 - nothing of it applies
        """Ask the model and wait for the whole answer."""
        runnable, messages = self._prepare(request)
        try:
            answer = await runnable.ainvoke(messages)
        except Exception as exc:
            raise _failure(exc) from exc
        message: dict[str, Any] = {"role": "assistant", "content": str(answer.text) or None}
        message |= _picked(answer.additional_kwargs, _MESSAGE_MEMBERS)
        if reasoning := _reasoning(answer):
            message["reasoning_content"] = reasoning
        if calls := _tool_calls(answer):
            message["tool_calls"] = calls
        elif message["content"] is None:
            message["content"] = ""
        return Answer(
            message=message,
            finish_reason=_finish_reason(answer),
            usage=complete_usage(_openai_usage(answer), request, said=message),
            model=str(request.get("model")),
            choice_members=_picked(answer.response_metadata, _CHOICE_MEMBERS),
            members=_picked(answer.response_metadata, _MEMBERS),
        )

    async def stream(
        self, request: Mapping[str, Any], *, delivery: Delivery = _AS_WRITTEN
    ) -> AsyncGenerator[Chunk, None]:
        """Ask the model, and pass on every piece of its answer as soon as it is here."""
        runnable, messages = self._prepare(request)
        model = str(request.get("model"))
        whole: AIMessageChunk | None = None
        async with aclosing(_pieces(runnable, messages)) as pieces:
            async for piece in pieces:
                whole = piece if whole is None else whole + piece
                beside = _picked(piece.response_metadata, _CHOICE_MEMBERS)
                if (delta := _delta(piece)) or beside:
                    yield Chunk(delta=delta, model=model, as_message=delivery.as_message, choice_members=beside)
                    await asyncio.sleep(delivery.pace_s)
        if whole is None:
            raise ModelError(_BAD_GATEWAY, "The model ended its stream without an answer.")
        said = {"content": str(whole.text), "tool_calls": _tool_calls(whole)}
        yield Chunk(
            delta={},
            model=model,
            finish_reason=_finish_reason(whole),
            usage=complete_usage(_openai_usage(whole), request, said=said),
            as_message=delivery.as_message,
            members=_picked(whole.response_metadata, _MEMBERS),
        )

    async def aclose(self) -> None:
        """Nothing to close: the model belongs to its maker."""

    def _prepare(self, request: Mapping[str, Any]) -> tuple[Runnable[Any, AIMessage], list[BaseMessage]]:
        from langchain_core.messages import convert_to_messages

        try:
            messages = convert_to_messages(request["messages"])
        except (ValueError, NotImplementedError, KeyError, TypeError) as exc:
            raise ModelError(400, f"The messages cannot be put to a LangChain model: {exc}") from exc
        parameters = {name: request[name] for name in _PARAMETERS if request.get(name) is not None}
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        if limit is not None:
            parameters["max_tokens"] = limit
        if not request.get("tools"):
            return self.chat.bind(**parameters), messages
        if request.get("tool_choice") is not None:
            parameters["tool_choice"] = request["tool_choice"]
        try:
            return self.chat.bind_tools(request["tools"], **parameters), messages
        except NotImplementedError as exc:
            raise ModelError(400, f"{type(self.chat).__name__} does not take tools.") from exc


async def _pieces(
    runnable: Runnable[Any, AIMessage], messages: list[BaseMessage]
) -> AsyncGenerator[AIMessageChunk, None]:
    from langchain_core.messages import AIMessageChunk

    stream = runnable.astream(messages)
    try:
        async for piece in stream:
            if isinstance(piece, AIMessageChunk):
                yield piece
    except Exception as exc:
        raise _failure(exc) from exc
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


def _failure(error: Exception) -> ModelError:
    # The providers' own packages put the HTTP status there.
    provider_status = getattr(error, "status_code", None)
    message = f"The model failed: {type(error).__name__}: {error}"
    if not isinstance(provider_status, int):
        return ModelError(_BAD_GATEWAY, message, is_retryable=True)
    status, is_retryable = status_for(provider_status)
    return ModelError(status, message, provider_status=provider_status, is_retryable=is_retryable)


def _picked(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if given.get(name)}


def _delta(piece: AIMessageChunk) -> dict[str, Any]:
    delta: dict[str, Any] = _picked(piece.additional_kwargs, _MESSAGE_MEMBERS)
    if text := str(piece.text):
        delta["content"] = text
    if reasoning := _reasoning(piece):
        delta["reasoning_content"] = reasoning
    if piece.tool_call_chunks:
        delta["tool_calls"] = [
            {
                "index": part.get("index"),
                **({"id": part["id"], "type": "function"} if part.get("id") else {}),
                "function": {
                    **({"name": part["name"]} if part.get("name") else {}),
                    "arguments": part.get("args") or "",
                },
            }
            for part in piece.tool_call_chunks
        ]
    return delta


def _reasoning(message: AIMessage) -> str:
    given = message.additional_kwargs.get("reasoning_content")
    if isinstance(given, str):
        return given
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(str(block.get("reasoning") or block.get("thinking") or "") for block in blocks)


def _tool_calls(message: AIMessage) -> list[dict[str, Any]]:
    whole = [(call["id"], call["name"], json.dumps(call["args"])) for call in message.tool_calls]
    # Arguments that are no JSON are the caller's to judge; the devnet passes them on.
    broken = [(call["id"], call["name"], call["args"]) for call in message.invalid_tool_calls]
    return [
        {"id": call_id, "type": "function", "function": {"name": name or "", "arguments": arguments or ""}}
        for call_id, name, arguments in [*whole, *broken]
    ]


def _finish_reason(message: AIMessage) -> str:
    if message.tool_calls or message.invalid_tool_calls:
        return "tool_calls"
    given = message.response_metadata
    reason = str(given.get("finish_reason") or given.get("stop_reason") or given.get("done_reason") or "").lower()
    return "length" if reason in _CUT else "content_filter" if reason in _FILTERED else "stop"


def _openai_usage(message: AIMessage) -> dict[str, Any] | None:
    given = message.usage_metadata
    if given is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": given["input_tokens"],
        "completion_tokens": given["output_tokens"],
        "total_tokens": given["total_tokens"],
    }
    if cached := (given.get("input_token_details") or {}).get("cache_read"):
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning := (given.get("output_token_details") or {}).get("reasoning"):
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage
