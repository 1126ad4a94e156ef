"""Gateways that take a payment and deny it, ask twice, or charge too much: what they say, and what the chain shows."""

from __future__ import annotations

import time
from decimal import Decimal

import httpx
import pytest

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.faults import (
    AlterOpgPrice,
    DemandAnew,
    DripHeaders,
    InflateCost,
    OmitDate,
    SettleAndRefuse,
    SkewClock,
    parse_fault,
)
from support.answers import answer_of
from support.payer import Payer, chat_body, decode

OPG = 10**18
CAP = OPG // 10


@pytest.fixture
def payer(net):
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        yield payer


def spent(net: Devnet, payer: Payer) -> int:
    return 10 * OPG - net.chain.token_balance(payer.address)


# --- taken, and denied ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [402, 400, 403, 404, 429, 500, 503])
def test_payment_can_be_taken_and_denied_under_any_status(net, payer, status):
    net.faults.inject(SettleAndRefuse(status=status, body='{"error": "no"}'))
    payment = payer.payment()
    response = payer.chat(payment=payment)

    assert (response.status_code, response.json()) == (status, {"error": "no"})
    assert not {"payment-required", "payment-response", "x-upto-session"} & set(response.headers)
    assert spent(net, payer) == CAP
    assert payer.chat(payment=payment).status_code == 402, "the same payment cannot be taken twice"
    assert spent(net, payer) == CAP


@pytest.mark.parametrize("challenge", ["absent", "garbled", "good"])
@pytest.mark.parametrize("receipt", ["absent", "garbled", "failed", "good"])
def test_denial_has_the_headers_that_it_is_told_to_have(net, payer, challenge, receipt):
    net.faults.inject(SettleAndRefuse(challenge=challenge, receipt=receipt, amount=str(OPG // 100)))
    response = payer.chat()

    assert response.status_code == 402
    assert spent(net, payer) == OPG // 100
    for header, kind in (("payment-required", challenge), ("payment-response", receipt)):
        shown = response.headers.get_list(header)
        assert len(shown) == (kind != "absent")
        if kind == "garbled":
            with pytest.raises(ValueError, match=r"padding|JSON|Expecting"):
                decode(shown[0])
    if receipt == "failed":
        told = decode(response.headers["payment-response"])
        assert (told["success"], told["transaction"], told["errorReason"]) == (False, "", "settlement_failed")
    if receipt == "good":
        told = decode(response.headers["payment-response"])
        assert net.chain.rpc("eth_getTransactionReceipt", [told["transaction"]])["status"] == "0x1"
    if challenge == "good":
        assert decode(response.headers["payment-required"])["accepts"] == payer.challenge()["accepts"]


def test_payment_can_be_denied_without_being_taken(net, payer):
    net.faults.inject(SettleAndRefuse(settles=False, challenge="garbled"))
    payment = payer.payment()

    assert payer.chat(payment=payment).status_code == 402
    assert spent(net, payer) == 0
    assert payer.chat(payment=payment).status_code == 200


def test_payment_of_any_scheme_can_be_taken_and_denied():
    with Devnet(sessions=False, schemes=list(Scheme)) as net:
        for number in range(3):
            with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
                net.faults.inject(SettleAndRefuse(status=500))
                assert payer.chat(payment=payer.payment(offer=number)).status_code == 500
                assert spent(net, payer) == (CAP if number == 0 else OPG // 100)


# --- asked twice ----------------------------------------------------------------------------------------------


def test_other_terms_can_move_the_payment_to_another_nonce_space_and_both_are_taken(net, payer):
    net.faults.inject(DemandAnew(scheme="exact-eip3009"))
    first = payer.chat(payment=payer.payment(nonce=7))
    challenge = decode(first.headers["payment-required"])
    (offer,) = challenge["accepts"]
    second = payer.chat(payment=payer.payment(challenge, nonce=7))

    assert first.status_code == 402
    assert (offer["scheme"], "assetTransferMethod" in offer["extra"]) == ("exact", False)
    assert second.status_code == 200
    assert spent(net, payer) == CAP
    (record,) = net.settle_hoarded()
    assert record.success
    assert spent(net, payer) == 2 * CAP


def test_smaller_and_shorter_terms_can_hide_a_first_signature_that_is_settled_later(net, payer):
    net.faults.inject(DemandAnew(amount=str(OPG // 100), max_timeout_s=30))
    challenge = payer.challenge()
    first = payer.chat(payment=payer.payment(challenge, nonce=9))
    anew = decode(first.headers["payment-required"])
    second = payer.chat(payment=payer.payment(anew, nonce=9))
    (record,) = net.settle_hoarded()
    net.close_sessions()

    assert [(offer["amount"], offer["maxTimeoutSeconds"]) for offer in anew["accepts"]] == [(str(OPG // 100), 30)]
    assert second.status_code == 200
    assert record.amount_atomic == CAP
    assert spent(net, payer) == CAP, "one nonce is settled once: the first signature, and not the second"
    assert net.settle_hoarded() == []


@pytest.mark.parametrize(("settles", "taken"), [("now", CAP), ("never", 0)])
def test_first_signature_can_be_taken_at_once_or_never(net, payer, settles, taken):
    net.faults.inject(DemandAnew(settles=settles))
    assert payer.chat().status_code == 402
    assert spent(net, payer) == taken
    assert net.settle_hoarded() == []


def test_new_faults_can_be_named_in_json():
    assert parse_fault("settle_and_refuse", {"status": 500}) == SettleAndRefuse(status=500)
    assert parse_fault("demand_anew", {"scheme": "exact-eip3009"}) == DemandAnew(scheme="exact-eip3009")


# --- too dear -------------------------------------------------------------------------------------------------


def price_of(response: httpx.Response) -> dict:
    return answer_of(response.text)[2]["opengradient"]


@pytest.mark.parametrize("stream", [False, True])
def test_cost_can_be_inflated_in_quote_and_settlement_alike(net, payer, stream):
    body = chat_body(stream=stream)
    net.close_sessions()
    honest = Decimal(price_of(payer.chat(body))["cost_opg"])
    net.close_sessions()
    before = spent(net, payer)
    net.faults.inject(InflateCost(factor=7))
    quote = price_of(payer.chat(body))
    net.close_sessions()

    assert Decimal(quote["cost_opg"]) == 7 * honest
    assert quote["opg_price_usd"] == "0.2"
    assert spent(net, payer) - before == 7 * honest * OPG == 7 * before


def test_price_of_the_token_can_be_far_off_in_quote_and_settlement_alike(net, payer):
    honest = price_of(payer.chat())
    net.close_sessions()
    before = spent(net, payer)
    net.faults.inject(AlterOpgPrice(opg_usd="0.02"))
    quote = price_of(payer.chat())
    net.close_sessions()

    assert (quote["opg_price_usd"], quote["cost_usd"]) == ("0.02", honest["cost_usd"])
    assert spent(net, payer) - before == 10 * before == Decimal(quote["cost_opg"]) * OPG


# --- time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["unpaid", "paid"])
def test_headers_can_drip(net, payer, when):
    payment = payer.payment() if when == "paid" else None
    net.faults.inject(DripHeaders(pace_s=0.02, lines=20, when=when))
    begun = time.monotonic()
    headers = {"payment-signature": payment} if payment else {}
    response = payer.http.post("/v1/chat/completions", json=chat_body(), headers=headers)

    assert time.monotonic() - begun > 0.4
    assert (response.status_code, response.json()) == (200, {})
    assert len([name for name in response.headers if name.startswith("x-drip-")]) == 20
    assert payer.chat().status_code == 200


def test_date_can_be_missing_or_wrong_before_and_after_payment(net, payer):
    net.faults.inject(OmitDate(), times=2)
    challenge = payer.http.post("/v1/chat/completions", json=chat_body())
    paid = payer.chat(payment=payer.payment(decode(challenge.headers["payment-required"])))
    net.faults.inject(SkewClock(by_s=86_400))
    wrong = payer.http.post("/v1/chat/completions", json=chat_body())

    assert (challenge.status_code, paid.status_code) == (402, 200)
    assert not {"date"} & {*challenge.headers, *paid.headers}
    assert wrong.headers["date"] != payer.chat().headers["date"]
