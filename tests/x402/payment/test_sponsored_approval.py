"""A wallet without gas can pay when it asks for a sponsored approval by name, and signs none otherwise."""

from __future__ import annotations

import httpx
import pytest
from eth_account import Account as Keys

from opengradient_x402.errors import AllowanceMissing, ConfigurationError, PaymentNotApproved
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.wallet import Wallet
from support.payers import PROMPT, client_for, network_of, settled_receipts

OPG = 10**18


@pytest.fixture
def bare(net):
    """A wallet with OPG and no gas coin at all."""
    keys = Keys.create()
    rich = net.account(opg="2")
    transfer = "0xa9059cbb" + keys.address[2:].lower().rjust(64, "0") + f"{OPG:064x}"
    nonce = int(net.chain.rpc("eth_getTransactionCount", [rich.address, "latest"]), 16)
    signed = Keys.from_key(rich.private_key).sign_transaction(
        {
            "to": net.network["asset"]["address"],
            "data": transfer,
            "nonce": nonce,
            "gas": 100_000,
            "gasPrice": int(net.chain.rpc("eth_gasPrice", []), 16) * 2,
            "chainId": net.network["chain_id"],
            "value": 0,
        }
    )
    answer = httpx.post(
        net.rpc_url,
        json={
            "jsonrpc": "2.0",
            "id": 1,
            "method": "eth_sendRawTransaction",
            "params": [signed.raw_transaction.to_0x_hex()],
        },
    ).json()
    assert "result" in answer, answer
    return keys


def payments_of(net, keys, tmp_path, **policy):
    return Payments.open(
        network=network_of(net),
        private_key=keys.key.hex(),
        policy=SpendPolicy(**policy),
        ledger=tmp_path / "l.sqlite",
    )


def test_the_facilitator_sends_the_approval_and_it_is_bounded(net, bare, tmp_path):
    payments = payments_of(net, bare, tmp_path, sponsored_approval="0.5")
    wallet = Wallet(payments.network, payments.signer)
    assert (wallet.balance(), wallet.native_balance(), wallet.allowance()) == (OPG, 0, 0)
    with client_for(payments) as client:
        client.chat(PROMPT)
        client.chat(PROMPT)
        receipts = settled_receipts(net, payments)
    assert {receipt.status for receipt in receipts} == {ReceiptStatus.SETTLED}
    assert OPG - wallet.balance() == sum(receipt.settled_atomic for receipt in receipts) > 0
    assert wallet.allowance() == OPG // 2 - sum(receipt.settled_atomic for receipt in receipts)
    payments.close()


def test_no_approval_is_signed_for_a_payment_that_a_person_refuses(net, bare, tmp_path):
    signed_so_far = []

    def refuse(_request) -> bool:
        signed_so_far.append(payments.funds.approval)
        return False

    payments = payments_of(net, bare, tmp_path, sponsored_approval="0.5", approve_above="0.01", approval=refuse)
    with client_for(payments) as client, pytest.raises(PaymentNotApproved):
        client.chat(PROMPT)
    assert signed_so_far == [None]
    assert payments.funds.approval is None
    payments.close()


def test_without_the_option_nothing_is_approved_and_nothing_is_signed(net, bare, tmp_path):
    payments = payments_of(net, bare, tmp_path)
    with client_for(payments) as client, pytest.raises(AllowanceMissing, match="opengradient-x402 approve"):
        client.chat(PROMPT)
    assert payments.ledger.authorizations().result() == []
    payments.close()


def test_an_amount_below_the_payment_approves_nothing(net, bare, tmp_path):
    payments = payments_of(net, bare, tmp_path, sponsored_approval="0.01")
    with client_for(payments) as client, pytest.raises(AllowanceMissing):
        client.chat(PROMPT)
    payments.close()


def test_the_amount_is_a_limit_like_the_others():
    with pytest.raises(ConfigurationError, match="sponsored_approval"):
        SpendPolicy(sponsored_approval=0.5)
