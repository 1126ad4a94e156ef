"""Names of earlier SDKs and tutorials: each still works, and means what it meant."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum

import httpx
import pytest

import langchain_opengradient
import llama_index_opengradient
from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_devnet import Devnet
from opengradient_x402 import TEE_LLM, GatewayClient, Payments, SettlementMode, SettlementReceipt, Wallet, load_network
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.request import UnlistedModelWarning
from opengradient_x402.models import find_model
from support.payers import payments_for

OLD_MODES = {
    "SETTLE": "private",
    "PRIVATE": "private",
    "SETTLE_BATCH": "batch",
    "BATCH_HASHED": "batch",
    "SETTLE_METADATA": "individual",
    "INDIVIDUAL_FULL": "individual",
}


class x402SettlementMode(str, Enum):  # noqa: N801, UP042 - the SDK's own name and bases
    """The enum of the OpenGradient SDK, as of its first release with x402."""

    SETTLE = "settle"
    SETTLE_BATCH = "settle-batch"
    SETTLE_METADATA = "settle-metadata"


class SdkModels(str, Enum):  # noqa: UP042 - the SDK's own bases
    """The SDK's `TEE_LLM`, in part."""

    GPT_5 = "openai/gpt-5"
    GROK_4 = "x-ai/grok-4"


def what_was_published(net: Devnet, receipt: SettlementReceipt) -> str:
    """The mode that the gateway acted in, told by what it wrote on the chain about the call."""
    if receipt.data_tx_hash is not None:
        return "individual"
    before = len(net.batches)
    return "batch" if len(net.flush_batches()) > before else "private"


@pytest.mark.parametrize(("old_name", "mode"), OLD_MODES.items())
def test_every_old_mode_name_reaches_the_wire_from_langchain(net, payments, old_name, mode):
    net.flush_batches()
    with ChatOpenGradient(model="openai/gpt-5", payments=payments) as model:
        answer = model.invoke("Say hello.", x402_settlement_mode=getattr(SettlementMode, old_name))
        assert what_was_published(net, langchain_opengradient.receipt_of(answer)) == mode
        answer = model.invoke("Say hello.", settlement_mode=old_name.lower())
        assert what_was_published(net, langchain_opengradient.receipt_of(answer)) == mode


@pytest.mark.parametrize(("old_name", "mode"), OLD_MODES.items())
def test_every_old_mode_name_reaches_the_wire_from_llama_index(net, payments, old_name, mode):
    net.flush_batches()
    model = OpenGradient(model="openai/gpt-5", payments=payments)
    answer = model.complete("Say hello.", x402_settlement_mode=getattr(SettlementMode, old_name))
    assert what_was_published(net, llama_index_opengradient.receipt_of(answer)) == mode
    answer = model.complete("Say hello.", settlement_mode=old_name.lower())
    assert what_was_published(net, llama_index_opengradient.receipt_of(answer)) == mode
    model.close()


@pytest.mark.parametrize("member", list(x402SettlementMode))
def test_the_sdks_own_enum_is_taken_per_model_and_per_call(member):
    mode = OLD_MODES[member.name]
    assert SettlementMode.parse(member) == mode
    assert ChatOpenGradient(model="openai/gpt-5", x402_settlement_mode=member).settlement_mode == mode
    assert OpenGradient(model="openai/gpt-5", x402_settlement_mode=member).settlement_mode == mode


def test_a_mode_that_never_existed_is_refused_before_it_could_publish_too_much():
    with pytest.raises(ConfigurationError, match="Unknown settlement mode"):
        SettlementMode.parse("SETTLE_NOTHING")


def test_approval_takes_the_older_opg_amount(net):
    """`opg_amount=5`: at least 5 OPG may be moved afterwards, and the second call sends nothing."""
    payments = Payments.open(network=f"{net.gateway_url}/network", private_key=net.account().private_key)
    wallet = Wallet(payments.network, payments.signer)
    first = wallet.ensure_opg_approval(opg_amount=5)
    assert first.tx_hash is not None
    assert wallet.allowance() == first.allowance_after_atomic == 5 * 10**18
    assert wallet.ensure_opg_approval(opg_amount=5).tx_hash is None


@pytest.mark.parametrize("amount", [5, "5", Decimal(5)])
def test_approval_takes_min_allowance(net, amount):
    payments = Payments.open(network=f"{net.gateway_url}/network", private_key=net.account().private_key)
    wallet = Wallet(payments.network, payments.signer)
    assert wallet.ensure_opg_approval(min_allowance=amount).allowance_after_atomic >= 5 * 10**18
    assert wallet.ensure_opg_approval(min_allowance=amount).tx_hash is None


@pytest.mark.parametrize("name", [TEE_LLM.GROK_4, SdkModels.GROK_4, "x-ai/grok-4", "grok-4", "xai/grok-4"])
def test_models_are_taken_as_members_and_as_strings(payments, name):
    with ChatOpenGradient(model=name, payments=payments) as chat:
        assert chat.invoke("Who are you?").text.count("grok-4 answers") == 1
    llm = OpenGradient(model=name, payments=payments)
    assert "grok-4 answers" in llm.complete("Who are you?").text
    llm.close()
    assert find_model(name) is find_model("x-ai/grok-4")


@pytest.mark.parametrize("name", ["CLAUDE_SONNET_4_6", "GEMINI_2_5_FLASH", "GPT_5", "GROK_4", "GPT_4_1_2025_04_14"])
def test_the_members_that_tutorials_use_are_in_the_catalog(name):
    assert find_model(TEE_LLM[name]) is not None


class ListsNothing(httpx.BaseTransport):
    """A gateway that keeps its models to itself."""

    def __init__(self) -> None:
        self._wire = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(404, request=request)
        return self._wire.handle_request(request)

    def close(self) -> None:
        self._wire.close()


def test_a_model_that_nobody_lists_is_called_with_a_warning(tmp_path):
    """The catalog is not the judge: a gateway that lists no models may serve any."""
    price = {"context_tokens": 9, "max_output_tokens": 9, "input_usd_per_mtok": "1", "output_usd_per_mtok": "1"}
    with Devnet(prices={"opg_usd": "0.2", "models": {"acme/nova": price}}) as net:
        payments = Payments.open(
            network=f"{net.gateway_url}/network",
            private_key=net.account(approved=True).private_key,
            ledger=tmp_path / "ledger.sqlite",
        )
        wire = ListsNothing()
        client = GatewayClient(payments, http_transport=wire)
        with pytest.warns(UnlistedModelWarning, match="could not be checked before paying"):
            answer = ChatOpenGradient(model="nova", payments=payments, client=client).invoke("Hello")
        assert "nova answers" in answer.text
        wire.close()
        payments.close()


def test_payment_hash_is_on_the_message_once_a_payment_is_known(devnets, tmp_path):
    """Without sessions a gateway settles before it answers, so the hash is there at once."""
    net = devnets(sessions=False)
    account = net.account(opg="10", approved=True)
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:
        with ChatOpenGradient(model="openai/gpt-5", payments=payments) as chat:
            message = chat.invoke("Hello")
        assert message.response_metadata["payment_hash"] == net.settlements[-1].transaction
        llm = OpenGradient(model="openai/gpt-5", payments=payments)
        response = llm.complete("Hello")
        assert response.raw["payment_hash"] == net.settlements[-1].transaction
        llm.close()


def test_a_network_is_found_by_its_old_and_its_new_name():
    assert load_network("base-sepolia").chain_id == 84532
    assert load_network("base").chain_id == 8453
