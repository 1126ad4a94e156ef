"""The official x402 client pays the devnet's gateway, and the chain shows for how much."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.gateway.payment.challenge import Scheme
from support.payers import PROMPT, opg_balance

OPG = 10**18
EXACT_PRICE = "0.01"


def ask(official, scripts, net, account, *, http, calls=1):
    """The answers that the official client got for its money."""
    task = {
        "url": f"{net.gateway_url}/v1/chat/completions",
        "private_key": account.private_key,
        "network": net.network["network"],
        "asset": net.network["asset"]["address"],
        "limit_atomic": str(OPG),
        "body": PROMPT,
        "http": http,
        "calls": calls,
        "rpc_url": net.rpc_url,
    }
    answers = official.run(scripts / "official_client.py", task)["answers"]
    assert [answer["status"] for answer in answers] == [200] * calls
    return answers


def is_on_chain(net, tx_hash):
    return net.chain.rpc("eth_getTransactionReceipt", [tx_hash])["status"] == "0x1"


def text_of(answer):
    return json.loads(answer["body"])["choices"][0]["message"]["content"]


def quoted_atomic(answer):
    cost = Decimal(json.loads(answer["body"])["opengradient"]["cost_opg"]) * OPG
    assert cost == int(cost)
    return int(cost)


@pytest.mark.parametrize("http", ["httpx", "requests"])
def test_the_official_client_pays_with_upto_and_is_charged_what_was_quoted(official, scripts, net, http):
    account, (payee,) = net.account(opg="10", approved=True), net.network["payees"]
    before, earned_before = opg_balance(net, account.address), opg_balance(net, payee)
    answers = ask(official, scripts, net, account, http=http, calls=2)
    assert all("What is x402?" in text_of(answer) for answer in answers)
    # It knows no sessions: every call opens one, and none is reused.
    assert len({answer["session"] for answer in answers} - {None}) == 2
    settlements = [record for record in net.close_sessions() if record.payer == account.address]
    assert sorted(record.amount_atomic for record in settlements) == sorted(map(quoted_atomic, answers))
    assert all(is_on_chain(net, record.transaction) for record in settlements)
    spent = before - opg_balance(net, account.address)
    assert spent == sum(map(quoted_atomic, answers)) == opg_balance(net, payee) - earned_before > 0


@pytest.mark.parametrize("http", ["httpx", "requests"])
@pytest.mark.parametrize("scheme", [Scheme.EXACT_PERMIT2, Scheme.EXACT_EIP3009])
def test_the_official_client_pays_an_exact_price_and_reads_the_settlement(official, scripts, scheme, http):
    with Devnet(schemes=[scheme], exact_price_opg=EXACT_PRICE) as net:
        # EIP-3009 is the token's own: it must not need an approval for Permit2.
        account = net.account(opg="1", approved=scheme is Scheme.EXACT_PERMIT2)
        (answer,) = ask(official, scripts, net, account, http=http)
        assert "What is x402?" in text_of(answer)
        assert answer["session"] is None
        (record,) = net.settlements
        assert answer["payment_response"] == {
            "success": True,
            "payer": account.address,
            "transaction": record.transaction,
            "network": net.network["network"],
            "amount": str(OPG // 100),
        }
        assert is_on_chain(net, record.transaction)
        assert opg_balance(net, account.address) == OPG - OPG // 100
        assert opg_balance(net, net.network["payees"][0]) == OPG // 100


@pytest.mark.parametrize("http", ["httpx", "requests"])
@pytest.mark.parametrize("scheme", [Scheme.BATCH_SETTLEMENT, Scheme.BATCH_SETTLEMENT_EIP3009])
def test_the_official_client_pays_by_a_channel_and_the_claims_are_its_charges(official, scripts, scheme, http):
    with Devnet(schemes=[scheme], session_cap_opg="0.05") as net:
        account, (payee,) = net.account(opg="5", approved=scheme is Scheme.BATCH_SETTLEMENT), net.network["payees"]
        answers = ask(official, scripts, net, account, http=http, calls=3)
        responses = [answer["payment_response"] for answer in answers]
        assert [bool(response["transaction"]) for response in responses] == [True, False, False]
        charged = sum(int(response["extra"]["chargedAmount"]) for response in responses)
        assert charged == sum(map(quoted_atomic, answers)) > 0
        net.claim_channels()
        assert opg_balance(net, payee) == charged
        (channel,) = net.channels
        assert (channel.charged, channel.on_chain.total_claimed) == (charged, charged)
