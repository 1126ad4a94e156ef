"""The model's configuration: what it says of itself, how it travels, and what it never gives away."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.tools import FunctionTool
from pydantic import SecretStr, ValidationError

import llama_index_opengradient
from llama_index_opengradient import OpenGradient, SettlementMode, SpendPolicy, receipt_of
from llamaindex.suite.forms import ALL, ask, subject
from opengradient_devnet import Account, Devnet
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint, InvalidPrivateKey, UnknownModel
from opengradient_x402.models import find_model

KEY = "0x" + "c0ffee" * 10 + "beef"


def test_the_namespace_of_llama_index_has_the_same_names():
    shim = importlib.import_module("llama_index.llms.opengradient")
    for name in llama_index_opengradient.__all__:
        assert getattr(shim, name) is getattr(llama_index_opengradient, name)


def test_the_suite_does_not_need_the_payment_stack():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import llamaindex.suite\n"
        "assert not [name for name in sys.modules if name.startswith('opengradient_x402')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_first_call_and_a_first_token_load_nothing_of_web3(net, tmp_path):
    wallet = net.account(opg="10", approved=True)
    script = f"""
import sys
import llama_index_opengradient
from llama_index_opengradient import OpenGradient
model = OpenGradient(model="openai/gpt-5", private_key={wallet.private_key!r},
                     network="{net.gateway_url}/network", ledger={str(tmp_path / "l.sqlite")!r})
next(iter(model.stream_complete("hello")))
model.complete("hello")
slow = {{"web3", "eth_account", "eth_abi"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
model.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


def test_metadata_comes_from_the_catalog():
    info = find_model("openai/gpt-5")
    metadata = OpenGradient(model="openai/gpt-5").metadata
    assert metadata.context_window == info.context_tokens
    assert metadata.num_output == 4096, "what gateways give when nobody asks for more"
    assert metadata.model_name == "openai/gpt-5"


def test_metadata_can_be_overridden():
    llm = OpenGradient(model="openai/gpt-5", context_window=1000, max_tokens=10, is_function_calling_model=False)
    assert (llm.metadata.context_window, llm.metadata.num_output) == (1000, 10)
    assert not llm.metadata.is_function_calling_model


def test_a_model_is_made_without_looking_at_key_network_or_ledger():
    llm = OpenGradient(model="openai/gpt-5", private_key="not a key", network="no such network", ledger="/no/such/dir")
    assert llm.metadata.is_chat_model
    assert resolve_llm(llm) is llm


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"max_tokens": 0}, {"max_retries": -1}, {"context_window": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        OpenGradient(model="openai/gpt-5", **wrong)


def test_a_misspelt_limit_is_refused_instead_of_ignored():
    with pytest.raises(ValidationError, match="spending_policy"):
        OpenGradient(model="openai/gpt-5", spending_policy=SpendPolicy(max_per_day="1"))


@pytest.mark.parametrize("name", ["private_key", "api_key"])
def test_no_error_about_other_fields_holds_the_key(name):
    for wrong in ({}, {"model": "openai/gpt-5", "timeout": "soon"}, {"model": "openai/gpt-5", "nonsense": 1}):
        with pytest.raises(ValidationError) as caught:
            OpenGradient(**{name: KEY}, **wrong)
        assert KEY[2:10] not in f"{caught.value} {caught.value!r} {caught.value.errors()}"


def test_the_key_may_be_called_what_generic_code_calls_it(net: Devnet, account: Account):
    llm = OpenGradient(model="openai/gpt-5", api_key=account.private_key, network=f"{net.gateway_url}/network")
    assert receipt_of(llm.complete("Who pays?")).payer == account.address
    llm.close()


@pytest.mark.parametrize("mode", ["individual", "SETTLE_METADATA", SettlementMode.INDIVIDUAL, "INDIVIDUAL_FULL"])
def test_settlement_modes_under_all_names(mode):
    assert OpenGradient(model="openai/gpt-5", settlement_mode=mode).settlement_mode is SettlementMode.INDIVIDUAL


def test_a_dump_is_plain_json_and_keeps_limits():
    policy = SpendPolicy(max_per_day="1", payees=["0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"])
    llm = OpenGradient(
        model="openai/gpt-5",
        private_key=KEY,
        spend_policy=policy,
        settlement_mode="private",
        network="base-sepolia",
        ledger="sqlite:////tmp/ledger.sqlite",
        stop="END",
        additional_kwargs={"reasoning_effort": "low"},
    )
    again = OpenGradient.from_dict(json.loads(json.dumps(llm.to_dict())))
    assert again.spend_policy == policy
    assert again.to_dict() == llm.to_dict()
    assert again.private_key is None
    assert OpenGradient.model_validate_json(llm.model_dump_json()).to_dict() == llm.to_dict()


def test_a_dump_does_not_hold_the_password_of_a_ledger():
    llm = OpenGradient(model="openai/gpt-5", ledger="postgresql://user:hunter2@db/ledger")
    assert "hunter2" not in json.dumps(llm.to_dict())
    assert "hunter2" not in repr(llm)


def test_a_pickle_keeps_limits_and_ledger_but_not_the_key(account: Account, net: Devnet, tmp_path, monkeypatch):
    policy = SpendPolicy(max_per_day="1")
    llm = OpenGradient(
        model="openai/gpt-5",
        private_key=account.private_key,
        network=f"{net.gateway_url}/network",
        ledger=tmp_path / "mine.sqlite",
        spend_policy=policy,
    )
    llm.complete("Open everything.")
    pickled = pickle.dumps(llm)
    llm.close()
    assert account.private_key.removeprefix("0x").encode() not in pickled
    again = pickle.loads(pickled)
    assert again.spend_policy == policy
    assert str(again.ledger).endswith("mine.sqlite")
    with pytest.raises(InvalidPrivateKey):
        again.complete("Who pays?")
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    again = pickle.loads(pickled)
    assert receipt_of(again.complete("I do.")).payer == account.address
    again.close()


def test_a_model_that_was_given_payments_travels_without_them(payments_on_devnet, monkeypatch):
    payments, account = payments_on_devnet
    llm = OpenGradient(model="openai/gpt-5", payments=payments)
    llm.complete("Shared.")
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    again = pickle.loads(pickle.dumps(llm))
    assert again.payments is None
    assert again.network == payments.network
    assert again.ledger == payments.ledger.url
    assert receipt_of(again.complete("Alone.")).payer == account.address
    again.close()
    llm.close()
    assert llm.complete("Payments that were given are not closed.").text
    llm.close()


@pytest.fixture
def payments_on_devnet(net: Devnet, account: Account, tmp_path):
    from support.payers import payments_for

    with payments_for(net, account, tmp_path / "shared.sqlite") as payments:
        yield payments, account


def test_a_copy_changes_nothing_in_the_original():
    llm = OpenGradient(model="openai/gpt-5", stop=["a"], additional_kwargs={"deep": {"er": 1}})
    copied = copy.deepcopy(llm)
    copied.stop.append("b")
    copied.additional_kwargs["deep"]["er"] = 2
    assert llm.stop == ["a"]
    assert llm.additional_kwargs == {"deep": {"er": 1}}
    assert copied.metadata == llm.metadata


def test_a_closed_model_opens_again(make_llm):
    llm = make_llm()
    assert llm.complete("Once.").text
    llm.close()
    assert llm.complete("Twice.").text

    async def twice():
        first = (await llm.acomplete("Once.")).text
        await llm.aclose()
        second = (await llm.acomplete("Twice.")).text
        await llm.aclose()
        return first and second

    assert asyncio.run(twice())


def test_an_enclave_s_proof_can_be_required(make_llm):
    receipt = make_llm(verify_tee="require").complete("Prove it.").raw["x402"]
    assert receipt["tee_verified"].startswith("verified")


def test_the_environment_chooses_settlement_and_gateway_for_a_model_that_does_not(make_llm, monkeypatch):
    monkeypatch.setenv("OG_SETTLEMENT_MODE", "private")
    assert make_llm().complete("Quietly.").raw["x402"]["settlement_mode"] == "private"
    assert make_llm(settlement_mode="batch").complete("Aloud.").raw["x402"]["settlement_mode"] == "batch"
    monkeypatch.setenv("OG_GATEWAY_URL", "http://gateway.example")
    with pytest.raises(InsecureEndpoint, match=r"gateway\.example"):
        make_llm().complete("Where?")


def test_a_changed_field_holds_from_the_next_call_on(make_llm, net: Devnet):
    llm, other = make_llm(), net.account(opg="1", approved=True)
    llm.complete("Mine.")
    copied = llm.model_copy(update={"private_key": SecretStr(other.private_key)})
    assert receipt_of(copied.complete("Theirs.")).payer == other.address
    llm.base_url = "http://gateway.example"
    with pytest.raises(InsecureEndpoint):
        llm.complete("Elsewhere.")


def test_one_call_may_choose_its_model_and_its_settlement(make_llm):
    llm = make_llm()
    receipt = llm.complete("Say it.", model="anthropic/claude-haiku-4-5", settlement_mode="SETTLE").raw["x402"]
    assert receipt["settlement_mode"] == "private"
    assert "claude" in receipt["model"]
    assert llm.model == "openai/gpt-5"


class CountingLimiter(BaseRateLimiter):
    def __init__(self):
        self.acquired = 0

    def acquire(self):
        self.acquired += 1

    async def async_acquire(self):
        self.acquired += 1


@pytest.mark.parametrize("form", ALL)
def test_a_rate_limiter_is_asked_once_per_call(make_llm, form):
    limiter = CountingLimiter()
    ask(make_llm(rate_limiter=limiter), form, subject(form))
    assert limiter.acquired == 1


def test_bad_configuration_is_an_error_of_the_call_and_says_that_nothing_was_paid(make_llm, net: Devnet):
    with pytest.raises(InvalidPrivateKey, match="OG_PRIVATE_KEY"):
        OpenGradient(model="openai/gpt-5", network=f"{net.gateway_url}/network").complete("Who?")
    with pytest.raises(ConfigurationError):
        make_llm(base_url="http://gateway.example").complete("Unsafe.")
    with pytest.raises(UnknownModel):
        make_llm(model="nobody/never-heard-of-it-1").complete("Who?")


def test_tracing_sees_model_and_temperature_and_no_key():
    payload = OpenGradient(model="openai/gpt-5", temperature=0.25, private_key=KEY).to_payload()
    assert (payload["model"], payload["temperature"]) == ("openai/gpt-5", 0.25)
    assert KEY[2:] not in json.dumps(payload)


def test_tool_calls_are_mirrored_as_plain_data(make_llm):
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    message = make_llm().chat_with_tools([FunctionTool.from_defaults(add)], "Add 1 and 2.", tool_required=True).message
    assert json.loads(json.dumps(message.additional_kwargs["tool_calls"]))[0]["function"]["name"] == "add"
    assert all(type(call) is dict for call in message.additional_kwargs["tool_calls"])
