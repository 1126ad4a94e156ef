"""What holds at the first signature of a channel holds at every later one: a person is asked, the clock is right."""

from __future__ import annotations

import time

import pytest

from opengradient_devnet import Scheme
from opengradient_devnet.faults import AlterTerms, SettleAtCap
from opengradient_x402.errors import PaymentOutcomeUnknown, PolicyRefused
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
AMOUNT, DEPOSIT = 10**17, 10**18


def test_a_price_that_is_raised_after_the_voucher_left_is_signed_only_if_a_person_agrees(net, account, tmp_path):
    asked: list[int] = []

    def agrees_to_the_deposit(request) -> bool:
        asked.append(request.amount_atomic)
        return request.amount_atomic == DEPOSIT

    policy = SpendPolicy(approve_above="0.15", approval=agrees_to_the_deposit)
    with payments_for(net, account, tmp_path / "ask", policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.faults.inject(AlterTerms(amount=str(2 * AMOUNT)), times=None)
        with pytest.raises(PaymentOutcomeUnknown, match=r"0\.2 OPG .* was refused"):
            client.chat(PROMPT)
        assert asked == [DEPOSIT, 2 * AMOUNT]
        assert [one.amount_atomic for one in payments.ledger.authorizations().result()] == [AMOUNT, AMOUNT]
        net.faults.inject(SettleAtCap())  # it takes all that it was ever sent a voucher for
        net.claim_channels()
        assert sum(channel.claimed_atomic for channel in payments.channels.list()) < 2 * AMOUNT


def test_a_gateway_with_a_dispute_gets_no_voucher_for_its_new_price(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    net.claim_channels()
    net.faults.inject(AlterTerms(amount=str(AMOUNT // 2)), times=None)
    real = payments.clock.check

    def reconciles_meanwhile():
        payments.clock.check = real
        payments.reconciler.reconcile()
        return real()

    payments.clock.check = reconciles_meanwhile  # after the first look at disputes, before the first voucher
    with pytest.raises(PaymentOutcomeUnknown, match="is disputed"):
        client.chat(PROMPT)


def test_a_clock_that_is_set_while_a_person_is_asked_about_a_deposit_signs_nothing(net, account, tmp_path, monkeypatch):
    real = time.time

    def says_yes(_request) -> bool:
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        return True

    policy = SpendPolicy(approve_above="0.5", approval=says_yes)
    with payments_for(net, account, tmp_path / "clock", policy=policy) as payments, client_for(payments) as client:
        with pytest.raises(PolicyRefused, match="clock"):
            client.chat(PROMPT)
        monkeypatch.setattr(time, "time", real)
        assert payments.ledger.authorizations().result() == []
        (channel,) = payments.rides.book.channels(network=payments.network.caip2, payer=payments.payer).result()
        assert channel.deposit is None
        assert [one for one in net.channels if one.config.payer == account.address] == []
