"""Whatever shape an answer has, it is the same message in the eight ways to ask for it: two faces, whole and streamed,
sync and async, through a gateway that is paid."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, ThinkingBlock, ToolCallBlock

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_x402.payment.payments import Payments
from support.answer_shapes import SHAPES, Shape, Shaped
from support.matrix import one_in

WAYS = 8
_MADE = re.compile(r"call_[0-9a-f]{32}")
_IN_CHOICE = ("native_finish_reason", "content_filter_results")
_IN_RESPONSE = ("system_fingerprint", "service_tier", "citations")
_IN_MESSAGE = ("annotations", "audio", "reasoning_details")


async def answers(payments: Payments) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The way, and what a reader finds."""
    chat, llm = (
        ChatOpenGradient(model="openai/gpt-5", payments=payments),
        OpenGradient(model="openai/gpt-5", payments=payments),
    )
    user = [ChatMessage(role="user", content="x")]
    yield "invoke", of_message(chat.invoke("x"))
    yield "stream", of_message(summed(list(chat.stream("x"))))
    yield "ainvoke", of_message(await chat.ainvoke("x"))
    yield "astream", of_message(summed([chunk async for chunk in chat.astream("x")]))
    yield "chat", of_response(llm.chat(user))
    yield "stream_chat", of_response(list(llm.stream_chat(user))[-1])
    yield "achat", of_response(await llm.achat(user))
    yield "astream_chat", of_response([chunk async for chunk in await llm.astream_chat(user)][-1])
    for model in (chat, llm):
        await model.aclose()


def summed(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


def of_message(message: AIMessage) -> dict[str, Any]:
    """What LangChain's users find."""
    metadata, extra, usage = message.response_metadata, message.additional_kwargs, message.usage_metadata
    return found(
        text=message.content,
        calls=[(call["name"], call["args"], call["id"]) for call in message.tool_calls],
        broken=[(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls],
        reason=metadata["finish_reason"],
        counts=(usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]),
        cached=usage.get("input_token_details", {}).get("cache_read"),
        reasoned=usage.get("output_token_details", {}).get("reasoning"),
        reasoning=extra.get("reasoning_content"),
        refusal=extra.get("refusal"),
        images=extra.get("images"),
        call_extras=extra.get("tool_call_extras"),
        logprobs=metadata.get("logprobs"),
        **{name: metadata.get(name) for name in (*_IN_RESPONSE, *_IN_CHOICE)},
        **{name: extra.get(name) for name in _IN_MESSAGE},
    )


def of_response(response: ChatResponse) -> dict[str, Any]:
    """What LlamaIndex's users find."""
    message, raw, extra = response.message, response.raw, response.additional_kwargs
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    refusal = extra.get("refusal")
    text = message.content or ""
    return found(
        text="" if text == refusal else text,
        calls=[
            (one.tool_name, one.tool_kwargs, one.tool_call_id) for one in calls if isinstance(one.tool_kwargs, dict)
        ],
        broken=[
            (one.tool_name, one.tool_kwargs, one.tool_call_id) for one in calls if isinstance(one.tool_kwargs, str)
        ],
        reason=raw["choices"][0]["finish_reason"],
        counts=tuple(raw["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")),
        cached=raw["usage"]["prompt_tokens_details"]["cached_tokens"],
        reasoned=raw["usage"]["completion_tokens_details"]["reasoning_tokens"],
        reasoning="".join(block.content for block in message.blocks if isinstance(block, ThinkingBlock)),
        refusal=refusal,
        images=[str(block.url) for block in message.blocks if isinstance(block, ImageBlock)],
        call_extras=message.additional_kwargs.get("tool_call_extras"),
        logprobs=raw["choices"][0].get("logprobs"),
        **{name: raw.get(name) for name in _IN_RESPONSE},
        **{name: raw["choices"][0].get(name) for name in _IN_CHOICE},
        **{name: extra.get(name) for name in _IN_MESSAGE},
    )


def found(**members: Any) -> dict[str, Any]:
    """Without what is not there; ids that were made here are `None`, and each is another one."""
    ids = [call_id for _, _, call_id in (*members["calls"], *members["broken"])]
    assert len(set(ids)) == len(ids)
    for kind in ("calls", "broken"):
        members[kind] = [
            (name, args, None if _MADE.fullmatch(call_id) else call_id) for name, args, call_id in members[kind]
        ]
    return {name: value for name, value in members.items() if value}


def expected(shape: Shape) -> Mapping[str, Any]:
    counts = tuple(shape.usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    reason = shape.plain_reason or shape.reason
    means = {"text": shape.text, "calls": shape.calls, "broken": shape.broken, "reason": reason, "counts": counts}
    return {name: value for name, value in {**means, **shape.found}.items() if value}


MARKED = one_in(5, SHAPES)


@pytest.mark.parametrize("shape", MARKED, ids=lambda shape: shape.name)
async def test_an_answer_is_the_same_message_in_all_eight_ways(shape: Shape, shaped: Shaped, paying: Payments):
    shaped.shape = shape
    ways = {way: answer async for way, answer in answers(paying)}
    assert ways == dict.fromkeys(ways, expected(shape))
    assert len(ways) == WAYS


def test_each_shape_has_a_name_of_its_own():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 60
