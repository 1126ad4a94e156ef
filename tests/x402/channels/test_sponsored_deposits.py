"""A wallet that approved nothing fills a channel: a permit or an approval travels with the deposit."""

from __future__ import annotations

import base64
import json

import httpx
import pytest

from opengradient_devnet import Scheme
from opengradient_devnet.faults import RefusePayment
from opengradient_x402.errors import AllowanceMissing, PaymentOutcomeUnknown
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.wallet import Wallet
from support.payers import PROMPT, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
WALLET, DEPOSIT = 2 * 10**18, 10**18
CHALLENGE = "PAYMENT-REQUIRED"


class Without(httpx.HTTPTransport):
    """A gateway that does not offer one of the extensions."""

    def __init__(self, extension):
        super().__init__()
        self._extension = extension

    def handle_request(self, request):
        response = super().handle_request(request)
        if CHALLENGE in response.headers:
            content = json.loads(base64.b64decode(response.headers[CHALLENGE]))
            content["extensions"].pop(self._extension, None)
            response.headers[CHALLENGE] = base64.b64encode(json.dumps(content).encode()).decode()
        return response


@pytest.fixture
def sponsored(net, tmp_path):
    account = net.account(opg="2")
    policy = SpendPolicy(sponsored_approval="1")
    with payments_for(net, account, tmp_path / "sponsored.sqlite", policy=policy) as payments:
        yield payments


@pytest.mark.parametrize("missing", ["nothing", "eip2612GasSponsoring"])
def test_the_deposit_is_collected_and_nothing_stays_approved(net, sponsored, missing):
    with Without(missing) as transport, client_for(sponsored, http_transport=transport) as client:
        cost = sum(client.chat(PROMPT).receipt.cost_atomic for _ in range(3))
    wallet = Wallet(sponsored.network, sponsored.signer)
    assert (wallet.balance(), wallet.allowance()) == (WALLET - DEPOSIT, 0)
    net.claim_channels()
    (channel,) = sponsored.channels.list()
    assert (channel.balance_atomic, channel.claimed_atomic) == (DEPOSIT, cost)


@pytest.mark.parametrize("missing", ["nothing", "eip2612GasSponsoring"])
def test_a_deposit_that_was_not_collected_goes_again_with_an_approval_of_its_own(net, sponsored, missing):
    with Without(missing) as transport, client_for(sponsored, http_transport=transport) as client:
        net.faults.inject(RefusePayment(error="not today"))
        with pytest.raises(PaymentOutcomeUnknown, match="not today"):
            client.chat(PROMPT)
        sponsored.funds.approval = None  # as another process, or after another payment
        assert client.chat(PROMPT).receipt.status == "served"
        (channel,) = sponsored.channels.list()
    assert channel.balance_atomic == DEPOSIT
    assert Wallet(sponsored.network, sponsored.signer).balance() == WALLET - DEPOSIT


def test_nothing_is_approved_where_the_policy_allows_less_than_the_deposit(net, tmp_path):
    policy = SpendPolicy(sponsored_approval="0.999999")
    with (
        payments_for(net, net.account(opg="2"), tmp_path / "less.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        with pytest.raises(AllowanceMissing):
            client.chat(PROMPT)
        assert payments.ledger.authorizations().result() == []
