"""A gateway that gives answers again: the same payment gets the same answer, and nothing more is taken."""

from __future__ import annotations

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import AnswerStatus
from support.payer import Payer, chat_body, decode, encode

pytestmark = pytest.mark.devnet(sessions=False, gives_answers_again=True)


@pytest.fixture
def payer(net: Devnet, account):
    with Payer(net.gateway_url, private_key=account.private_key) as opened:
        yield opened


def identified(payment: str, payment_id: str) -> str:
    content = decode(payment)
    content.setdefault("extensions", {})["payment-identifier"] = {"info": {"required": False, "id": payment_id}}
    return encode(content)


def ask(payer: Payer, payment: str, text: str = "What is x402?"):
    return payer.chat(chat_body(text), payment=payment)


def test_the_challenge_says_so(payer):
    assert payer.challenge()["extensions"]["payment-identifier"]["info"] == {"required": False}


def test_the_same_payment_gets_the_same_answer_and_is_settled_once(net, payer):
    payment = identified(payer.payment(), "call_0123456789abcdef")
    first, second = ask(payer, payment), ask(payer, payment)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["payment-response"] == second.headers["payment-response"]
    assert len(payer.settlements(net)) == 1


def test_another_question_or_another_payment_under_the_same_id_is_refused(net, payer):
    payment = identified(payer.payment(), "call_fedcba9876543210")
    assert ask(payer, payment).status_code == 200
    assert ask(payer, payment, "And what else?").status_code == 409
    assert ask(payer, identified(payer.payment(), "call_fedcba9876543210")).status_code == 409
    assert len(payer.settlements(net)) == 1


def test_an_error_is_not_remembered(net, payer):
    payment = identified(payer.payment(), "call_aaaabbbbccccdddd")
    net.faults.inject(AnswerStatus(status=503, body="{}"))
    assert ask(payer, payment).status_code == 503
    assert ask(payer, payment).status_code == 200
    assert len(payer.settlements(net)) == 1


def test_a_payment_without_an_id_is_paid_once_and_refused_then(net, payer):
    payment = payer.payment()
    assert ask(payer, payment).status_code == 200
    assert ask(payer, payment).status_code == 402
