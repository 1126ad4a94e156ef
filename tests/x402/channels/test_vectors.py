"""Channel ids, vouchers and deposits are those of the official x402 client, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from opengradient_x402.chain.eip712 import channel_id, deposit_nonce, voucher_document
from opengradient_x402.channels.channel import Channel, Deposit
from opengradient_x402.channels.vouchers import deposit_payload, id_of, voucher_payload
from opengradient_x402.keys.signer import LocalSigner, signer_of
from opengradient_x402.networks import PRESETS

VECTORS = Path(__file__).parents[2] / "vectors" / "payment_channels.json"
CASES = json.loads(VECTORS.read_text())["cases"]
IDS = [f"{number}-{case['requirements']['extra']['assetTransferMethod']}" for number, case in enumerate(CASES)]


def network_of(case):
    return replace(PRESETS["base"], chain_id=int(case["requirements"]["network"].partition(":")[2]))


def channel_of(case):
    config = case["channel_config"]
    return Channel(
        id=case["channel_id"],
        network=case["requirements"]["network"],
        endpoint="https://gateway.example/v1/chat/completions",
        payer=config["payer"],
        payer_authorizer=config["payerAuthorizer"],
        receiver=config["receiver"],
        receiver_authorizer=config["receiverAuthorizer"],
        asset=config["token"],
        withdraw_delay_s=config["withdrawDelay"],
        salt=int(config["salt"], 16),
        transfer_method=case["requirements"]["extra"]["assetTransferMethod"],
    )


def deposit_of(case):
    deposit = case["deposit_payload"]["deposit"]
    signed = next(iter(deposit["authorization"].values()))
    salt = int(signed["nonce"]) if "nonce" in signed else int(signed["salt"], 16)
    deadline = int(signed.get("deadline") or signed["validBefore"])
    return Deposit(amount_atomic=int(deposit["amount"]), salt=salt, deadline=deadline)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_channel_ids_are_those_of_the_official_client(case):
    assert id_of(channel_of(case), network_of(case)) == case["channel_id"]
    if "erc3009_nonce" in case:
        raw = channel_id(channel_of(case), chain_id=network_of(case).chain_id)
        assert deposit_nonce(raw, deposit_of(case).salt) == int(case["erc3009_nonce"], 16)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_payloads_are_byte_identical_to_the_official_client(case, implementation):
    signer, channel, network = LocalSigner(case["private_key"]), channel_of(case), network_of(case)
    extra = case["requirements"]["extra"]
    payload = deposit_payload(
        channel,
        int(case["max_claimable_amount"]),
        deposit_of(case),
        signer=signer,
        network=network,
        token=(extra["name"], extra["version"]),
    )
    assert json.dumps(payload) == json.dumps(case["deposit_payload"])
    for voucher in case["vouchers"]:
        made = voucher_payload(channel, int(voucher["maxClaimableAmount"]), signer=signer, network=network)
        assert made == {"type": "voucher", "channelConfig": case["channel_config"], "voucher": voucher}


@pytest.mark.parametrize("case", CASES[:2], ids=IDS[:2])
def test_a_wallet_that_signs_typed_data_only_makes_the_same_payloads(case):
    class Wallet:
        address = Account.from_key(case["private_key"]).address

        def sign_typed_data(self, *, full_message):
            return Account.sign_message(encode_typed_data(full_message=full_message), case["private_key"])

    signer = signer_of(Wallet())
    extra = case["requirements"]["extra"]
    payload = deposit_payload(
        channel_of(case),
        int(case["max_claimable_amount"]),
        deposit_of(case),
        signer=signer,
        network=network_of(case),
        token=(extra["name"], extra["version"]),
    )
    assert payload == case["deposit_payload"]


def test_a_voucher_names_its_contract_and_chain():
    document = voucher_document(b"\1" * 32, 5, chain_id=8453)
    assert document["domain"]["chainId"] == 8453
    assert document["domain"]["verifyingContract"] == "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"


def test_the_vectors_hold_both_ways_to_deposit():
    assert {case["requirements"]["extra"]["assetTransferMethod"] for case in CASES} == {"permit2", "eip3009"}
