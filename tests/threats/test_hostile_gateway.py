"""An allow-listed gateway that lies about money, on a devnet: what the chain took, and what the client says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_opengradient import ChatOpenGradient
from opengradient_devnet import Devnet
from opengradient_devnet.faults import (
    AlterOpgPrice,
    AlterTerms,
    AnswerStatus,
    DemandAnew,
    DripHeaders,
    InflateCost,
    OmitDate,
    SettleAndRefuse,
)
from opengradient_x402.errors import MoneyOutcome, OpenGradientError, PaymentOutcomeUnknown, PolicyRefused
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, client_for, opg_balance, payments_for, settled_receipts

OPG = 10**18
pytestmark = pytest.mark.devnet(sessions=False)


class Purse:
    """A payer, and what the chain took from it since the test began."""

    def __init__(self, net: Devnet, payments: Payments, client: GatewayClient) -> None:
        self.net, self.payments, self.client = net, payments, client
        self._before = opg_balance(net, payments.payer)

    @property
    def taken(self) -> int:
        return self._before - opg_balance(self.net, self.payments.payer)

    @property
    def counted(self) -> int:
        """What the budget counts: reserved and settled."""
        spent = self.payments.ledger.spent(
            payer=self.payments.payer, asset=self.payments.network.asset.address, network=self.payments.network.caip2
        )
        return spent.result()

    def outcome(self) -> OpenGradientError:
        with pytest.raises(OpenGradientError) as caught:
            self.client.chat(PROMPT)
        return caught.value

    def signatures(self) -> int:
        return sum(len(one.signed) for one in self.payments.ledger.authorizations().result())


@pytest.fixture
def purse(net: Devnet, payments: Payments, client: GatewayClient) -> Iterator[Purse]:
    yield Purse(net, payments, client)
    net.faults.clear()


LIES = [
    SettleAndRefuse(challenge=challenge, receipt=receipt)
    for challenge in ("absent", "garbled", "good")
    for receipt in ("absent", "garbled", "failed", "good")
] + [SettleAndRefuse(status=status, body='{"error": "bad request"}') for status in (400, 403, 404, 422, 429, 500)]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.status}-{lie.challenge}-{lie.receipt}")
def test_no_answer_after_a_signature_means_not_paid_and_no_second_payment_follows(purse, lie):
    purse.net.faults.inject(lie, times=None)
    errors = [purse.outcome() for _ in range(4)]
    assert MoneyOutcome.NOT_PAID not in [error.money for error in errors[:2]]
    assert isinstance(errors[0], PaymentOutcomeUnknown)
    assert purse.signatures() == 1
    settled_receipts(purse.net, purse.payments)
    assert 0 < purse.taken <= purse.counted


def test_a_retry_layer_that_believes_the_gateway_pays_once(net, payments):
    net.faults.inject(SettleAndRefuse(challenge="good"), times=None)
    purse = Purse(net, payments, None)
    model = ChatOpenGradient(model="openai/gpt-5", payments=payments, max_tokens=20)
    with pytest.raises(OpenGradientError) as caught:
        model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False).invoke("x")
    assert caught.value.money is not MoneyOutcome.NOT_PAID
    (authorization,) = payments.ledger.authorizations().result()
    assert purse.taken == authorization.amount_atomic


def test_a_gateway_that_took_what_it_refused_is_not_paid_again_until_the_user_clears_it(purse):
    purse.net.faults.inject(SettleAndRefuse(challenge="good"))
    assert [purse.outcome().money for _ in range(2)] == [MoneyOutcome.UNKNOWN, MoneyOutcome.PAID]
    (receipt,) = {one.call_id: one for one in purse.payments.ledger.receipts().result() if one.dispute}.values()
    assert receipt.status is ReceiptStatus.DISPUTED
    before = purse.taken
    assert "clear-dispute" in str(purse.outcome())
    assert purse.taken == before
    origin = receipt.endpoint.removesuffix("/v1/chat/completions")
    assert purse.payments.ledger.clear_disputes(network=receipt.network, origin=origin).result() == 1
    assert purse.client.chat(PROMPT).content


@pytest.mark.parametrize("scheme", ["exact-eip3009"])
def test_a_second_signature_is_made_in_the_nonce_space_of_the_first_only(purse, scheme):
    purse.client.chat(PROMPT)  # its terms are known now, so that the next payment is pre-emptive
    before = purse.signatures()
    purse.net.faults.inject(DemandAnew(scheme=scheme, settles="later"))
    assert isinstance(purse.outcome(), PaymentOutcomeUnknown)
    assert purse.signatures() == before + 1
    purse.net.settle_hoarded()
    settled_receipts(purse.net, purse.payments)
    assert purse.taken <= purse.counted


def test_a_small_and_short_second_signature_does_not_hide_the_first(purse):
    purse.client.chat(PROMPT)
    purse.net.faults.inject(DemandAnew(amount=str(10**9), max_timeout_s=30, settles="later"))
    purse.client.chat(PROMPT)
    *_, resigned = purse.payments.ledger.authorizations().result()
    assert len(resigned.signed) == 2
    assert resigned.reserved_atomic == max(terms.amount_atomic for terms in resigned.signed)
    assert resigned.deadline == max(terms.deadline for terms in resigned.signed)
    purse.net.settle_hoarded()
    settled_receipts(purse.net, purse.payments)
    assert purse.taken <= purse.counted


@pytest.mark.parametrize("factor", [2, 100])
def test_an_inflated_quote_that_is_settled_is_disputed(purse, factor):
    purse.net.faults.inject(InflateCost(factor=factor))
    purse.client.chat(PROMPT)
    (receipt,) = settled_receipts(purse.net, purse.payments)
    assert receipt.status is ReceiptStatus.DISPUTED
    assert "too much" in receipt.dispute
    assert isinstance(purse.outcome(), PolicyRefused)


def test_small_steps_of_a_price_end_at_twice_the_first_price_of_the_day(net, account, tmp_path):
    policy = SpendPolicy(max_per_day="9")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        amounts = []
        for step in range(8):
            amount = OPG // 10 * 14**step // 10**step
            net.faults.clear()
            net.faults.inject(AlterTerms(amount=str(amount)), times=None)
            payments.forget_terms(next(iter(payments._terms), None))
            if amount > 2 * OPG // 10:
                break
            client.chat(PROMPT)
            amounts.append(amount)
        with pytest.raises(PolicyRefused, match="first today"):
            client.chat(PROMPT)
        assert len(amounts) > 1


def _answers(net, account, path: Path, usd: str) -> tuple[list[str], str]:
    """What a new process of the wallet does while a token is said to be worth so much: quotes, and a refusal."""
    net.faults.clear()
    net.faults.inject(AlterOpgPrice(opg_usd=usd), times=None)
    quoted: list[str] = []
    with payments_for(net, account, path) as payments, client_for(payments) as client:
        try:
            for _ in range(3):
                quoted.append(client.chat(PROMPT).receipt.opg_usd)
        except PolicyRefused as exc:
            return quoted, str(exc)
    return quoted, ""


@pytest.mark.parametrize("usd", ["0.02", "2"])
def test_a_token_price_that_jumped_between_two_processes_is_refused_as_soon_as_it_is_heard(net, account, tmp_path, usd):
    path = tmp_path / "l.sqlite"
    assert _answers(net, account, path, "0.2") == (["0.2"] * 3, "")
    quoted, refusal = _answers(net, account, path, usd)
    assert quoted == [usd]
    assert f"quotes a token price of {usd} USD, after 0.2 USD before. Nothing was signed" in refusal


def test_small_steps_of_a_token_price_end_at_twice_the_first_of_the_day_however_many_processes_there_are(
    net, account, tmp_path
):
    path = tmp_path / "l.sqlite"
    for usd in ("0.2", "0.28", "0.39"):
        assert _answers(net, account, path, usd) == ([usd] * 3, "")
    quoted, refusal = _answers(net, account, path, "0.5")
    assert quoted == ["0.5"]
    assert "after 0.2 USD before" in refusal


@pytest.mark.parametrize("jump_s", [86_400, -86_400, 300])
@pytest.mark.parametrize("with_date", [True, False])
def test_a_clock_that_jumped_signs_nothing(purse, monkeypatch, jump_s, with_date):
    if with_date:
        purse.client.chat(PROMPT)
    else:
        purse.net.faults.inject(OmitDate(), times=None)
    real, before = time.time, purse.signatures()
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    error = purse.outcome()
    monkeypatch.setattr(time, "time", real)
    assert isinstance(error, PolicyRefused)
    assert purse.signatures() == before
    assert purse.client.chat(PROMPT).content, "the clock is right again"


def test_a_clock_that_is_set_while_a_person_is_asked_signs_nothing(net, account, tmp_path, monkeypatch):
    real = time.time

    def says_yes(_request):
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        return True

    policy = SpendPolicy(approve_above="0.05", approval=says_yes)
    with (
        payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments,
        GatewayClient(payments) as client,
    ):
        with pytest.raises(PolicyRefused):
            client.chat(PROMPT)
        monkeypatch.setattr(time, "time", real)
        assert payments.ledger.authorizations().result() == []


def test_a_gateway_without_a_date_is_paid_when_the_chain_confirms_the_clock(purse):
    purse.net.faults.inject(OmitDate(), times=None)
    assert purse.client.chat(PROMPT).content


def test_dripped_headers_end_at_the_calls_time_limit_and_leave_the_outcome_open(net, payments):
    net.faults.inject(DripHeaders(lines=600, pace_s=0.1))
    with GatewayClient(payments, timeout_s=3) as client:
        started = time.monotonic()
        with pytest.raises(PaymentOutcomeUnknown, match="timed out"):
            client.chat(PROMPT)
        assert time.monotonic() - started < 40


def test_an_error_that_leaves_the_outcome_open_is_paid_by_the_same_signature_next_time(purse):
    purse.net.faults.inject(AnswerStatus(status=500))
    first = purse.outcome()
    assert first.money is not MoneyOutcome.NOT_PAID
    assert purse.client.chat(PROMPT).content
    settled_receipts(purse.net, purse.payments)
    assert purse.taken <= purse.counted


def test_a_ledger_that_is_away_signs_nothing(net, account, tmp_path: Path):
    place = tmp_path / "no" / "ledger.sqlite"
    place.parent.touch()
    with payments_for(net, account, place) as payments, client_for(payments) as client:
        before = opg_balance(net, payments.payer)
        with pytest.raises(OpenGradientError) as caught:
            client.chat(PROMPT)
        assert caught.value.money is MoneyOutcome.NOT_PAID
        assert opg_balance(net, payments.payer) == before
