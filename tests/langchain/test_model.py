"""`ChatOpenGradient` as an object: what it is given, what it says about itself, how it is copied and used."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import warnings

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, trim_messages
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from langchain_opengradient import ChatOpenGradient, receipt_of
from langchain_opengradient.calls import build_call
from opengradient_devnet import Devnet
from opengradient_x402.models import TEE_LLM
from opengradient_x402.settlement_mode import SettlementMode

from .conftest import Payer

KEY = "0x" + "4d" * 32


def offline(**fields) -> ChatOpenGradient:
    return ChatOpenGradient(**{"model": "openai/gpt-5", "private_key": KEY, **fields})


# What it is given


def test_the_environment_completes_what_is_not_given(monkeypatch):
    monkeypatch.setenv("OG_PRIVATE_KEY", KEY)
    monkeypatch.setenv("OG_NETWORK", "base-sepolia")
    monkeypatch.setenv("OG_GATEWAY_URL", "https://gateway.test")
    monkeypatch.setenv("OG_SETTLEMENT_MODE", "SETTLE_METADATA")
    model = ChatOpenGradient(model="openai/gpt-5")
    assert model.private_key.get_secret_value() == KEY
    assert (model.network, model.base_url, model.settlement_mode) == (
        "base-sepolia",
        "https://gateway.test",
        "individual",
    )
    assert ChatOpenGradient(model="openai/gpt-5", network="base").network == "base"


def test_a_model_can_be_named_by_text_alias_field_or_enum():
    assert offline(model=TEE_LLM.GPT_5).model_name == "openai/gpt-5"
    assert ChatOpenGradient(model_name="openai/gpt-5", private_key=KEY).model_name == "openai/gpt-5"


@pytest.mark.parametrize("mode", ["private", "SETTLE", SettlementMode.SETTLE, "settle"])
def test_every_name_of_a_settlement_mode_works(mode):
    assert offline(settlement_mode=mode).settlement_mode == "private"
    assert offline(x402_settlement_mode=mode).settlement_mode == "private"


def test_a_wrong_field_is_reported_without_the_key():
    with pytest.raises(ValidationError) as caught:
        offline(temperature="very hot", private_key=KEY)
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value.errors())
    with pytest.raises(ValidationError) as caught:
        ChatOpenGradient(private_key=KEY)
    assert KEY not in repr(caught.value.errors())


# What it says about itself


def test_traces_name_provider_model_and_parameters():
    model = offline(temperature=0.5, max_tokens=9, stop=["END"])
    assert model._get_ls_params() == {
        "ls_provider": "opengradient",
        "ls_model_type": "chat",
        "ls_model_name": "openai/gpt-5",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["END"],
    }
    assert model._get_ls_params(model=TEE_LLM.GROK_4)["ls_model_name"] == "x-ai/grok-4"
    assert model._llm_type == "opengradient-chat"


def test_a_profile_says_what_the_model_can_do_and_is_a_copy():
    profile = offline()._resolve_model_profile()
    assert profile["max_input_tokens"] > 100_000
    assert profile["tool_calling"] is True
    profile["tool_calling"] = False
    assert offline()._resolve_model_profile()["tool_calling"] is True
    assert offline(model="nobody/knows-this")._resolve_model_profile() is None
    if "profile" in ChatOpenGradient.model_fields:
        assert offline().profile == offline()._resolve_model_profile()


def test_serialized_form_has_a_reference_in_place_of_the_key():
    as_json = json.loads(dumps(offline(temperature=0.5)))
    assert as_json["kwargs"]["private_key"] == {"lc": 1, "type": "secret", "id": ["OG_PRIVATE_KEY"]}
    assert as_json["kwargs"]["temperature"] == 0.5
    assert set(as_json["kwargs"]).isdisjoint({"connections", "payments", "client", "ledger"})
    assert dumpd(offline())["id"] == ["langchain_opengradient", "chat_models", "ChatOpenGradient"]


def test_tokens_are_counted_offline():
    model = offline()
    prose = "The quick brown fox jumps over the lazy dog. " * 20
    assert 150 < model.get_num_tokens(prose) < 300
    assert model.get_num_tokens("你好世界") >= 4
    messages = [SystemMessage("be brief"), HumanMessage(prose), HumanMessage("last")]

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    assert model.get_num_tokens_from_messages(messages, tools=[add]) > model.get_num_tokens_from_messages(messages)
    kept = trim_messages(messages, max_tokens=50, token_counter=model, strategy="last")
    assert kept == messages[-1:]


def test_importing_the_package_loads_no_framework_and_nothing_heavy():
    script = """
import sys
import langchain_opengradient
assert "langchain_core" not in sys.modules and "opengradient_x402.gateway.client" not in sys.modules
from langchain_opengradient import ChatOpenGradient
ChatOpenGradient(model="openai/gpt-5")
heavy = {"web3", "eth_account", "eth_abi", "openai", "sqlalchemy", "transformers", "tiktoken", "langchain", "IPython",
         "opengradient_devnet", "opengradient_x402.gateway.client", "opengradient_x402.payment.payments"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


def test_a_first_call_and_a_first_token_load_nothing_of_web3(net: Devnet, tmp_path):
    wallet = net.account(opg="10", approved=True)
    script = f"""
import sys
from langchain_opengradient import ChatOpenGradient
model = ChatOpenGradient(model="openai/gpt-5", private_key={wallet.private_key!r},
                         network="{net.gateway_url}/network", ledger={str(tmp_path / "l.sqlite")!r})
next(iter(model.stream("hello")))
model.invoke("hello")
slow = {{"web3", "eth_account", "eth_abi"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
model.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


def test_the_ledgers_library_is_loaded_while_the_gateway_is_asked_for_its_terms(net: Devnet, tmp_path):
    wallet = net.account(opg="10", approved=True)
    script = f"""
import sys, time
import httpx
from langchain_opengradient import ChatOpenGradient
from opengradient_x402 import GatewayClient, Payments

class Slow(httpx.HTTPTransport):
    waits = []
    def handle_request(self, request):
        if not self.waits:
            until = time.monotonic() + 60
            while "opengradient_x402.ledger.statements" not in sys.modules and time.monotonic() < until:
                time.sleep(0.01)
            self.waits.append(time.monotonic() < until)
        return super().handle_request(request)

payments = Payments.open(network="{net.gateway_url}/network", private_key={wallet.private_key!r},
                         ledger={str(tmp_path / "l.sqlite")!r})
model = ChatOpenGradient(model="openai/gpt-5", client=GatewayClient(payments, http_transport=Slow()))
assert model.invoke("hello").text
assert Slow.waits == [True]
foreign = [name for name in sys.modules if name.startswith(("sqlalchemy.dialects.postgresql", "aiohttp"))]
assert not foreign, foreign
payments.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


# How it is copied


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_a_pickle_holds_no_key_and_pays_from_the_environment(payer: Payer, monkeypatch, is_used: bool):
    model = ChatOpenGradient(
        model="openai/gpt-5",
        private_key=payer.account.private_key,
        network=f"{payer.network.gateway_url}/network",
        temperature=0.25,
    )
    if is_used:
        model.invoke("Hello")
    frozen = pickle.dumps(model)
    assert payer.account.private_key.removeprefix("0x").encode() not in frozen
    assert bytes.fromhex(payer.account.private_key.removeprefix("0x")) not in frozen
    monkeypatch.setenv("OG_PRIVATE_KEY", payer.account.private_key)
    with pickle.loads(frozen) as twin:
        assert twin.temperature == 0.25
        assert twin.invoke("Hello").text
    model.close()


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
async def test_a_deep_copy_pays_from_the_same_session(payer: Payer, is_used: bool):
    model = payer.model(rate_limiter=InMemoryRateLimiter(requests_per_second=1000))
    if is_used:
        model.invoke("Hello")
        await model.ainvoke("Hello")
    twin = copy.deepcopy(model)
    twin.temperature = 1.0
    assert model.temperature is None
    twin.invoke("Hello")
    await twin.ainvoke("Hello")
    model.invoke("Hello")
    assert len({receipt.authorization_id for receipt in payer.receipts().values()}) == 1


def test_configurable_fields_share_the_connections_of_the_model(net: Devnet, tmp_path):
    from langchain_core.runnables import ConfigurableField

    wallet = net.account(opg="10", approved=True)
    with ChatOpenGradient(
        model="openai/gpt-5",
        private_key=wallet.private_key,
        network=f"{net.gateway_url}/network",
        ledger=tmp_path / "ledger.sqlite",
    ) as model:
        flexible = model.configurable_fields(
            temperature=ConfigurableField(id="t"), model_name=ConfigurableField(id="m")
        )
        answers = [
            flexible.with_config(configurable={"t": 0.1, "m": name}).invoke("Hello")
            for name in ("openai/gpt-5", "x-ai/grok-4", "openai/gpt-5")
        ]
        names = [answer.response_metadata["model_name"] for answer in answers]
        assert names == ["openai/gpt-5", "x-ai/grok-4", "openai/gpt-5"]
        assert len({receipt_of(answer).authorization_id for answer in answers}) == 1


def test_alternatives_are_chosen_at_run_time(chat):
    from langchain_core.runnables import ConfigurableField

    either = chat().configurable_alternatives(
        ConfigurableField(id="which"), default_key="gpt", grok=chat(model="x-ai/grok-4")
    )
    answer = either.with_config(configurable={"which": "grok"}).invoke("Hello")
    assert answer.response_metadata["model_name"] == "x-ai/grok-4"


async def test_closing_and_using_it_again_works(net: Devnet):
    wallet = net.account(opg="10", approved=True)
    model = ChatOpenGradient(model="openai/gpt-5", private_key=wallet.private_key, network=f"{net.gateway_url}/network")
    async with model:
        model.invoke("Hello")
        await model.ainvoke("Hello")
    assert model.invoke("Hello").text
    await model.aclose()


def test_a_client_that_was_passed_in_is_never_closed(payer: Payer):
    from opengradient_x402.gateway.client import GatewayClient

    with GatewayClient(payer.payments) as client:
        with ChatOpenGradient(model="openai/gpt-5", client=client, payments=payer.payments) as model:
            model.invoke("Hello")
        assert client.chat({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi"}]}).content


# How it is used


async def test_sync_calls_work_inside_a_running_loop(model: ChatOpenGradient):
    assert model.invoke("Hello").text
    assert list(model.stream("Hello"))


def test_words_of_one_call_win_over_the_fields(chat):
    answer = chat(settlement_mode="batch").invoke(
        "Hello", model="x-ai/grok-4", x402_settlement_mode="SETTLE_METADATA", max_tokens=3, timeout=20
    )
    assert answer.response_metadata["model_name"] == "x-ai/grok-4"
    assert answer.response_metadata["opengradient"]["settlement_mode"] == "individual"
    assert answer.usage_metadata["output_tokens"] <= 3


@pytest.mark.parametrize("mode", ["private", "batch", "individual"])
def test_each_settlement_mode_is_on_the_receipt(chat, mode):
    receipt = chat(settlement_mode=mode).invoke("Hello").response_metadata["opengradient"]
    assert receipt["settlement_mode"] == mode


def test_stop_ends_the_answer_here_even_if_the_gateway_does_not(chat):
    model = chat()
    whole = model.invoke("Say it").text
    word = whole.split()[3]
    for cut in (
        model.invoke("Say it", stop=[word]).text,
        "".join(chunk.text for chunk in model.stream("Say it", stop=[word])),
        chat(stop=[word]).invoke("Say it").text,
        chat(stop_sequences=word).invoke("Say it").text,
    ):
        assert cut == whole[: whole.index(word)]


def test_a_cut_answer_says_that_it_was_cut(chat):
    model = chat(max_tokens=4)
    assert model.invoke("Hello there").response_metadata["finish_reason"] == "length"
    assert list(model.stream("Hello there"))[-1].response_metadata["finish_reason"] == "length"


def test_the_last_chunk_of_a_stream_has_usage_unless_told_otherwise(chat):
    def usage(model: ChatOpenGradient) -> list[object]:
        return [chunk.usage_metadata for chunk in model.stream("Hello") if chunk.usage_metadata]

    assert len(usage(chat())) == 1
    assert usage(chat(stream_usage=False)) == []


def test_streaming_arrives_in_pieces_also_with_tools(chat):
    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply two integers."""
        return a * b

    assert len(list(chat().stream("Hello there"))) > 3
    chunks = list(chat().bind_tools([multiply]).stream("Multiply 3 and 4"))
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert len(pieces) > 1
    assert [piece["name"] for piece in pieces if piece["name"]] == ["multiply"]


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token, **kwargs) -> None:
        self.tokens.append(token)


def test_streaming_can_be_switched_on_for_invoke_and_off_for_stream(chat):
    on, off = Tokens(), Tokens()
    chat(streaming=True).invoke("Hello", {"callbacks": [on]})
    assert len(on.tokens) > 3
    assert len(list(chat(disable_streaming=True).stream("Hello", {"callbacks": [off]}))) == 1
    assert off.tokens == []


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_version_1_content_is_blocks_in_whole_and_streamed_answers(chat, is_async):
    model = chat(output_version="v1")
    whole = await model.ainvoke("Hello") if is_async else model.invoke("Hello")
    chunks = [c async for c in model.astream("Hello")] if is_async else list(model.stream("Hello"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert isinstance(total, AIMessageChunk)
    assert [block["type"] for block in whole.content] == ["text"]
    assert [(block["type"], block["text"]) for block in total.content] == [("text", whole.content[0]["text"])]


def test_an_answer_of_version_1_can_be_sent_again(chat):
    model = chat(output_version="v1")
    first = model.invoke("Hello")
    assert model.invoke([HumanMessage("Hello"), first, HumanMessage("And again")]).text


def test_the_rate_limiter_is_asked_before_each_call(chat):
    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            Counting.asked += 1
            return super().acquire(blocking=blocking)

    model = chat(rate_limiter=Counting(requests_per_second=1000, max_bucket_size=10))
    model.invoke("Hello")
    list(model.stream("Hello"))
    assert Counting.asked == 2


def test_a_hundred_parallel_calls_open_few_sessions(payer: Payer):
    model = payer.model(max_tokens=16)

    async def ask() -> list[AIMessage]:
        return await asyncio.gather(*(model.ainvoke(f"Hello {number}") for number in range(100)))

    answers = asyncio.run(ask())
    assert len({answer.text for answer in answers}) == 100
    assert len({receipt.authorization_id for receipt in payer.receipts().values()}) <= 2


# What gateways do not do (the rules themselves: tests/x402/gateway/test_request.py)


def call_of(**kwargs):
    return build_call([HumanMessage("Hi")], defaults={"model": "openai/gpt-5"}, kwargs=kwargs)


def test_an_ignored_tool_choice_is_visible(chat):
    # `none` of the tools can be called, and yet one is required: without tools nothing is said about them.
    model = chat().bind(tools=[], tool_choice="required")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.invoke("Hello")


def test_absent_parameters_stay_out_of_the_request():
    assert call_of(temperature=None).body == {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 50), ("temperature", 0.9), ("stop", ["q"])])
def test_what_model_kwargs_say_is_sent_unless_a_field_says_otherwise(name: str, value):
    model = offline(model_kwargs={name: value})
    assert model._call([HumanMessage("Hi")], None, {}).body[name] == value
    own = {"max_tokens": 7, "temperature": 0.1, "stop": ["own"]}[name]
    assert offline(model_kwargs={name: value}, **{name: own})._call([HumanMessage("Hi")], None, {}).body[name] == own


class Answer(BaseModel):
    """An answer."""

    text: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_include_raw_gives_the_message_and_its_receipt(chat, method):
    result = (
        chat()
        .with_structured_output(Answer, method=method, include_raw=True)
        .invoke("Answer as JSON with the key 'text', which is 'yes'.")
    )
    assert isinstance(result["parsed"], Answer)
    assert result["parsing_error"] is None
    assert result["raw"].response_metadata["opengradient"]["status"] == "served"
