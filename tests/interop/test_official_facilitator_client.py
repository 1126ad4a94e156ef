"""The official HTTP facilitator client and an official payload, against the devnet's facilitator."""

from __future__ import annotations

import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_devnet.contracts import OPG as TOKEN
from opengradient_devnet.contracts import PERMIT2, contract
from opengradient_devnet.gateway.payment.challenge import PaymentTerms, Scheme
from support.payers import opg_balance

OPG = 10**18
ASKED = OPG // 10


def settle(official, scripts, net, account, *, scheme, take_atomic, extensions=None):
    """What the official client heard from the devnet's facilitator, and who was paid."""
    payee = new_account().address
    (facilitator_address,) = net.network["facilitators"]
    terms = PaymentTerms(
        network=net.network["network"],
        asset=TOKEN,
        asset_name="OpenGradient",
        asset_version="1",
        pay_to=payee,
        facilitator_address=facilitator_address,
        max_timeout_s=300,
    )
    task = {
        "facilitator_url": net.network["facilitator_url"],
        "private_key": account.private_key,
        "rpc_url": net.rpc_url,
        "requirements": terms.offer(scheme, amount_atomic=ASKED),
        "extensions": extensions,
        "take_atomic": str(take_atomic),
    }
    return official.run(scripts / "official_facilitator_client.py", task), payee


def allowance(net, owner):
    return int.from_bytes(net.chain.call(to=TOKEN, data=contract("OPG").encode("allowance", owner, PERMIT2)), "big")


@pytest.mark.parametrize(
    ("scheme", "approved", "taken"),
    [
        (Scheme.UPTO, True, ASKED // 7),
        (Scheme.EXACT_PERMIT2, True, ASKED),
        (Scheme.EXACT_EIP3009, False, ASKED),
    ],
)
def test_the_official_facilitator_client_verifies_and_settles_here(official, scripts, net, scheme, approved, taken):
    account = net.account(opg="1", approved=approved)
    heard, payee = settle(official, scripts, net, account, scheme=scheme, take_atomic=taken)
    assert heard["verified"] == {"isValid": True, "payer": account.address}
    receipt = net.chain.rpc("eth_getTransactionReceipt", [heard["settled"]["transaction"]])
    assert heard["settled"] == {
        "success": True,
        "payer": account.address,
        "transaction": receipt["transactionHash"],
        "network": net.network["network"],
        "amount": str(taken),
    }
    assert receipt["status"] == "0x1"
    assert heard["settled_again"]["success"] is False
    assert heard["settled_again"]["transaction"] == ""
    assert opg_balance(net, account.address) == OPG - taken
    assert opg_balance(net, payee) == taken


def test_the_official_client_sees_which_schemes_are_supported_and_who_settles(official, scripts, net):
    account = net.account(opg="1", approved=True)
    heard, _ = settle(official, scripts, net, account, scheme=Scheme.UPTO, take_atomic=ASKED)
    (facilitator_address,) = net.network["facilitators"]
    kinds = {kind["scheme"]: kind for kind in heard["supported"]["kinds"]}
    assert set(kinds) == {"upto", "exact", "batch-settlement"}
    assert {(kind["x402Version"], kind["network"]) for kind in kinds.values()} == {(2, net.network["network"])}
    assert kinds["upto"]["extra"]["facilitatorAddress"] == facilitator_address
    assert heard["supported"]["signers"]["eip155:*"] == [facilitator_address]


@pytest.mark.parametrize("scheme", [Scheme.UPTO, Scheme.EXACT_PERMIT2])
def test_a_wallet_without_approval_pays_by_the_permit_that_the_official_client_adds(official, scripts, net, scheme):
    account = net.account(opg="1")
    assert allowance(net, account.address) == 0
    sponsoring = {"eip2612GasSponsoring": {"info": {"version": "1"}, "schema": {}}}
    heard, payee = settle(official, scripts, net, account, scheme=scheme, take_atomic=ASKED, extensions=sponsoring)
    assert heard["verified"]["isValid"] is True, heard["verified"]
    assert heard["settled"]["success"] is True, heard["settled"]
    assert opg_balance(net, payee) == ASKED
    assert opg_balance(net, account.address) == OPG - ASKED


def test_the_official_client_hears_why_an_empty_wallet_is_refused(official, scripts, net):
    account = net.account(opg="0.05", approved=True)
    heard, payee = settle(official, scripts, net, account, scheme=Scheme.UPTO, take_atomic=ASKED)
    assert heard["verified"]["isValid"] is False
    assert "balance" in heard["verified"]["invalidReason"] or "funds" in heard["verified"]["invalidReason"]
    assert heard["settled"]["success"] is False
    assert opg_balance(net, payee) == 0
