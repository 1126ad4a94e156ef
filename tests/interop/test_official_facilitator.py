"""The official facilitator, in a process of its own, settles what our client signed, on the devnet's chain."""

from __future__ import annotations

import base64
import json

import httpx
import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_devnet.gateway.payment.challenge import PaymentTerms, Scheme
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.transport import X402Transport
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import opg_balance, payments_for

OPG = 10**18
ASKED = OPG // 10
URL = "http://127.0.0.1:9/v1/chat/completions"


class Shop(httpx.BaseTransport):
    """A seller that leaves everything about money to a facilitator, and takes `take_atomic` of what was signed."""

    def __init__(self, facilitator_url, *, offer, take_atomic):
        self._facilitator_url = facilitator_url
        self._offer = offer
        self._taken = offer | {"amount": str(take_atomic)}
        self.verified = self.settled = self.payload = None

    def handle_request(self, request):
        header = request.headers.get("PAYMENT-SIGNATURE")
        if header is None:
            resource = {"url": str(request.url)}
            asked = {"x402Version": 2, "error": "Payment required", "resource": resource, "accepts": [self._offer]}
            return httpx.Response(402, headers={"PAYMENT-REQUIRED": _encoded(asked)}, json={})
        self.payload = json.loads(base64.b64decode(header))
        self.verified = self.ask("verify", self._offer)
        self.settled = self.ask("settle", self._taken)
        return httpx.Response(200, headers={"PAYMENT-RESPONSE": _encoded(self.settled)}, json={"sold": True})

    def ask(self, operation, requirements):
        body = {"x402Version": 2, "paymentPayload": self.payload, "paymentRequirements": requirements}
        answer = httpx.post(f"{self._facilitator_url}/{operation}", json=body, timeout=30)
        return answer.raise_for_status().json()

    def settle_again(self):
        return self.ask("settle", self._taken)


def _encoded(content):
    return base64.b64encode(json.dumps(content).encode()).decode()


def offer_of(net, scheme, *, pay_to, facilitator):
    terms = PaymentTerms(
        network=net.network["network"],
        asset=net.network["asset"]["address"],
        asset_name=net.network["asset"]["name"],
        asset_version=net.network["asset"]["version"],
        pay_to=pay_to,
        facilitator_address=facilitator["address"],
        max_timeout_s=300,
    )
    return terms.offer(scheme, amount_atomic=ASKED)


@pytest.mark.parametrize(
    ("scheme", "approved", "taken"),
    [
        (Scheme.UPTO, True, ASKED // 3),
        (Scheme.EXACT_PERMIT2, True, ASKED),
        (Scheme.EXACT_EIP3009, False, ASKED),
    ],
)
def test_the_official_facilitator_settles_what_our_client_signed(
    net, official_facilitator, tmp_path, scheme, approved, taken
):
    account, payee = net.account(opg="1", approved=approved), new_account().address
    offer = offer_of(net, scheme, pay_to=payee, facilitator=official_facilitator)
    shop = Shop(official_facilitator["url"], offer=offer, take_atomic=taken)
    policy = SpendPolicy(payees=[payee], facilitators=[official_facilitator["address"]])
    with payments_for(net, account, tmp_path / "ledger.sqlite", policy=policy) as payments:
        with httpx.Client(transport=X402Transport(payments, wrapped=shop)) as http:
            assert http.post(URL, json={"model": "gpt-5"}).json() == {"sold": True}
        Reconciler(payments.network, payments.ledger).reconcile()
        (receipt,) = payments.ledger.receipts().result()
    assert (shop.verified["isValid"], shop.verified["payer"]) == (True, account.address)
    assert shop.settled["success"] is True, shop.settled
    assert opg_balance(net, account.address) == OPG - taken
    assert opg_balance(net, payee) == taken
    assert receipt.status is ReceiptStatus.SETTLED
    assert receipt.settled_atomic == taken
    assert receipt.payment_tx_hash == shop.settled["transaction"]
    # The chain keeps it from being taken twice.
    assert shop.settle_again()["success"] is False
    assert opg_balance(net, payee) == taken


def test_the_official_facilitator_refuses_a_payload_of_ours_that_was_tampered_with(net, official_facilitator, tmp_path):
    account, payee, thief = net.account(opg="1", approved=True), new_account().address, new_account().address
    offer = offer_of(net, Scheme.UPTO, pay_to=payee, facilitator=official_facilitator)
    shop = Shop(official_facilitator["url"], offer=offer, take_atomic=0)
    policy = SpendPolicy(payees=[payee], facilitators=[official_facilitator["address"]])
    with (
        payments_for(net, account, tmp_path / "ledger.sqlite", policy=policy) as payments,
        httpx.Client(transport=X402Transport(payments, wrapped=shop)) as http,
    ):
        http.post(URL, json={"model": "gpt-5"})
    stolen = offer | {"payTo": thief}
    shop.payload["accepted"] = stolen
    shop.payload["payload"]["permit2Authorization"]["witness"]["to"] = thief
    assert shop.verified["isValid"] is True  # until then it was good
    assert shop.ask("verify", stolen)["invalidReason"] == "invalid_permit2_signature"
    assert shop.ask("settle", stolen)["success"] is False
    assert opg_balance(net, thief) == 0
    assert opg_balance(net, account.address) == OPG
