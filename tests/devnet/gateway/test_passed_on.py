"""Whatever a model says reaches whoever pays for it: whole and streamed, in both profiles."""

from __future__ import annotations

import json

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opengradient_devnet import Devnet
from opengradient_devnet.model.langchain_upstream import LangChainModel
from support.answers import events_of
from support.loopback_server import serving
from support.payer import Payer, chat_body

LOGPROBS = {"content": [{"token": "ok", "logprob": -0.1, "bytes": [111, 107], "top_logprobs": []}], "refusal": None}
SIGNED = {"google": {"thought_signature": "c2lnbmVk"}}
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}, "extra_content": SIGNED}
MESSAGE = {
    "refusal": "I would rather not.",
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "A"}}],
    "audio": {"id": "audio_1", "data": "UklGRg==", "transcript": "ok", "expires_at": 1},
    "reasoning_details": [{"type": "reasoning.encrypted", "data": "b3BhcXVl", "index": 0}],
    "reasoning_content": "Hm.",
}
BESIDE = {"system_fingerprint": "fp_1", "service_tier": "flex", "citations": ["https://a.example"]}
# A server may not write what is the gateway's own.
FORGED = {"tee_signature": "forged", "opengradient": {"cost_opg": "0"}, "data_settlement_success": True}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def complete(request):
    asked = await request.json()
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"], **BESIDE, **FORGED}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "ok", **MESSAGE, "tool_calls": [CALL]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": LOGPROBS}
        return JSONResponse({**head, "choices": [choice], "usage": USAGE})
    deltas = [{"role": "assistant", "content": "ok"}, MESSAGE, {"tool_calls": [{"index": 0, **CALL}]}]
    choices = [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas]
    choices[0]["logprobs"] = LOGPROBS
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    head.pop("citations")  # some providers send them with the usage, in the last event
    events = [{**head, "choices": [choice]} for choice in choices]
    events.append({**head, "choices": [], "usage": USAGE, "citations": BESIDE["citations"]})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Response(f"{text}data: [DONE]\n\n", media_type="text/event-stream")


@pytest.fixture(scope="module")
def upstream():
    with serving(Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])) as url:
        yield f"openai:{url}/v1"


def payer_of(net: Devnet) -> Payer:
    return Payer(net.gateway_url, private_key=net.account(approved=True).private_key)


@pytest.mark.parametrize("profile", ["helpful", "gateway-2026-04"])
def test_whole_answer_has_everything_that_the_server_said(upstream, profile):
    with Devnet(upstream=upstream, behaves_like=profile) as net, payer_of(net) as payer:
        answer = payer.chat().json()
    (choice,) = answer["choices"]

    assert choice["message"] == {"role": "assistant", "content": "ok", **MESSAGE, "tool_calls": [CALL]}
    assert choice["logprobs"] == LOGPROBS
    assert BESIDE.items() <= answer.items()
    assert answer["tee_signature"] != "forged"
    assert answer.get("opengradient") != FORGED["opengradient"]
    assert "data_settlement_success" not in answer


@pytest.mark.parametrize("profile", ["helpful", "gateway-2026-04"])
def test_stream_has_everything_that_the_server_said(upstream, profile):
    with Devnet(upstream=upstream, behaves_like=profile) as net, payer_of(net) as payer:
        events = events_of(payer.chat(chat_body(stream=True)).text)
    said: dict = {}
    for event in events:
        said |= event["choices"][0]["delta"]

    assert said.items() >= MESSAGE.items()
    assert said["tool_calls"] == [{"index": 0, **CALL}]
    assert events[0]["choices"][0]["logprobs"] == LOGPROBS
    assert events[0]["system_fingerprint"] == "fp_1"
    assert BESIDE.items() <= events[-1].items()
    assert events[-1]["tee_signature"] != "forged"


@pytest.mark.parametrize("stream", [False, True])
def test_unpaid_port_passes_on_as_much(upstream, stream):
    with Devnet(upstream=upstream) as net, payer_of(net) as payer:
        text = payer.http.post(f"{net.unpaid_url}/chat/completions", json=chat_body(stream=stream)).text

    for said in ("fp_1", "flex", "thought_signature", "I would rather not.", "logprob", "b3BhcXVl", "audio_1"):
        assert said in text


def test_langchain_model_passes_on_what_it_keeps_beside_the_text():
    kept = {name: MESSAGE[name] for name in ("refusal", "annotations", "audio", "reasoning_details")}
    answer = AIMessage("ok", additional_kwargs=kept, response_metadata={"logprobs": LOGPROBS, **BESIDE})
    model = LangChainModel(chat=GenericFakeChatModel(messages=iter([answer, answer])))
    with Devnet(upstream=model) as net, payer_of(net) as payer:
        whole = payer.chat().json()

    assert kept.items() <= whole["choices"][0]["message"].items()
    assert whole["choices"][0]["logprobs"] == LOGPROBS
    assert BESIDE.items() <= whole.items()
