"""Bad input is refused before money moves, with an error that says what to do."""

from __future__ import annotations

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.errors import (
    AllowanceMissing,
    InsecureEndpoint,
    InsufficientFunds,
    InvalidPrivateKey,
    MoneyOutcome,
    NotPaid,
    PolicyRefused,
    UnknownNetwork,
)
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, client_for, network_of, payments_for

KEY = "0x" + "11" * 32


@pytest.mark.parametrize("key", ["", "0x12", "0x" + "00" * 32, "0x" + "ff" * 32, "not a key at all", "g" * 64])
def test_a_bad_key_is_refused_and_not_shown(key):
    with pytest.raises(InvalidPrivateKey) as caught:
        Payments.open(network="base", private_key=key)
    assert caught.value.money is MoneyOutcome.NOT_PAID
    assert not key or key not in str(caught.value)


def test_a_missing_key_says_where_to_put_it():
    with pytest.raises(InvalidPrivateKey, match="OG_PRIVATE_KEY"):
        Payments.open(network="base")


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(UnknownNetwork, match=r"base, base-sepolia.*opengradient-devnet"):
        Payments.open(network="solana", private_key=KEY)


@pytest.mark.parametrize("url", ["http://llm.example.com", "http://10.1.2.3", "https://169.254.1.1", "ftp://x", "x"])
def test_an_insecure_endpoint_is_refused_when_the_client_is_made(url):
    payments = Payments.open(network="base", private_key=KEY)
    with pytest.raises(InsecureEndpoint):
        GatewayClient(payments, base_url=url)


def expect_refusal(net: Devnet, account, tmp_path, error, match, **options):
    with payments_for(net, account, tmp_path / "l.sqlite", **options) as payments, client_for(payments) as client:
        with pytest.raises(error, match=match) as caught:
            client.chat(PROMPT)
        assert isinstance(caught.value, NotPaid)
        assert payments.ledger.authorizations().result() == []
    assert net.settlements == [] or account.address not in {s.payer for s in net.settlements}


def test_a_wallet_without_tokens_is_told_how_much_is_missing(net, tmp_path):
    account = net.account(opg="0", approved=True)
    expect_refusal(net, account, tmp_path, InsufficientFunds, account.address)


def test_a_wallet_without_allowance_is_told_how_to_approve(net, tmp_path):
    expect_refusal(net, net.account(opg="1"), tmp_path, AllowanceMissing, "opengradient-x402 approve")


def test_a_price_above_the_cap_names_both_amounts(net, account, tmp_path):
    policy = SpendPolicy(max_per_authorization="0.05")
    expect_refusal(net, account, tmp_path, PolicyRefused, r"0\.1 OPG.*0\.05", policy=policy)


def test_a_payee_that_is_not_listed_is_refused(net, account, tmp_path):
    from dataclasses import replace

    stranger = replace(network_of(net), payees=frozenset({"0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"}))
    payments = Payments.open(network=stranger, private_key=account.private_key, ledger=tmp_path / "l.sqlite")
    with client_for(payments) as client, pytest.raises(PolicyRefused, match="not an allowed payee"):
        client.chat(PROMPT)
    assert payments.ledger.authorizations().result() == []
    payments.close()
