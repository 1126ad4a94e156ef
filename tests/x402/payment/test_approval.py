"""A person is asked before a large payment; without a yes nothing is signed."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from opengradient_x402 import ApprovalRequest, SpendPolicy
from opengradient_x402.errors import ConfigurationError, MoneyOutcome, PaymentNotApproved
from support.payers import async_client_for, client_for, opg_balance, payments_for, settled_receipts

BODY = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "hi"}]}


class Person:
    """Somebody who answers, and remembers what was asked."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.asked: list[ApprovalRequest] = []

    def __call__(self, request: ApprovalRequest) -> bool:
        self.asked.append(request)
        return self.answer


def policy_of(approval, **limits) -> SpendPolicy:
    return SpendPolicy(approve_above="0.05", approval=approval, **limits)


def answered(payments) -> str:
    with client_for(payments) as client:
        return client.chat(BODY).content


def decisions(payments, requests) -> list[str]:
    noted = [payments.ledger.noted(f"approval {request.call_id}").result() for request in requests]
    return [json.loads(text)["decision"] for text in noted]


def test_a_yes_pays_once_for_a_session_and_is_asked_once(net: Devnet, tmp_path: Path) -> None:
    account, person = net.account(approved=True), Person()
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy_of(person)) as payments:
        with client_for(payments) as client:
            for _ in range(3):
                assert client.chat(BODY).content
        [request] = person.asked
        assert (request.amount, request.symbol, request.model) == ("0.1", "OPG", "openai/gpt-5")
        assert request.payee in net.network["payees"]
        assert request.payer == account.address
        assert decisions(payments, person.asked) == ["approved"]
        before = 10 * 10**18
        taken = before - opg_balance(net, account.address)
        assert taken == 0
        receipts = settled_receipts(net, payments)
        assert sum(receipt.settled_atomic for receipt in receipts) == before - opg_balance(net, account.address) > 0


def test_a_no_signs_nothing(net: Devnet, tmp_path: Path) -> None:
    account, person = net.account(approved=True), Person(answer=False)
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy_of(person)) as payments:
        with client_for(payments) as client, pytest.raises(PaymentNotApproved) as caught:
            client.chat(BODY)
        assert caught.value.money is MoneyOutcome.NOT_PAID
        assert "Nothing was signed" in str(caught.value)
        assert payments.ledger.authorizations().result() == []
        assert decisions(payments, person.asked) == ["refused"]
    assert opg_balance(net, account.address) == 10 * 10**18


def test_no_answer_in_time_signs_nothing_and_the_wait_is_no_time_of_the_call(net: Devnet, tmp_path: Path) -> None:
    account, never = net.account(approved=True), threading.Event()
    policy = policy_of(lambda _request: never.wait(), approval_timeout_s=0.2)
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments:
        with client_for(payments) as client, pytest.raises(PaymentNotApproved, match="not answered within"):
            client.chat(BODY)
        assert payments.ledger.authorizations().result() == []
        never.set()


@pytest.mark.parametrize("answer", [True, False])
async def test_an_async_person_is_awaited_in_the_callers_loop(net: Devnet, tmp_path: Path, answer: bool) -> None:
    account, loops = net.account(approved=True), []

    async def ask(request: ApprovalRequest) -> bool:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return answer

    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy_of(ask)) as payments:
        async with async_client_for(payments) as client:
            if answer:
                assert (await client.chat(BODY)).content
            else:
                with pytest.raises(PaymentNotApproved):
                    await client.chat(BODY)
        assert len(payments.ledger.authorizations().result()) == answer
    assert loops == [asyncio.get_running_loop()]


def test_an_async_person_answers_a_sync_call_as_well(net: Devnet, tmp_path: Path) -> None:
    async def ask(request: ApprovalRequest) -> bool:
        await asyncio.sleep(0)
        return True

    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite", policy=policy_of(ask)) as payments:
        assert answered(payments)


def test_small_payments_ask_nobody(net: Devnet, tmp_path: Path) -> None:
    person = Person(answer=False)
    policy = SpendPolicy(approve_above="0.1", approval=person)  # a session here is 0.1 OPG: not above it
    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite", policy=policy) as payments:
        assert answered(payments)
    assert person.asked == []


def test_what_the_person_raises_ends_the_call_and_nothing_is_signed(net: Devnet, tmp_path: Path) -> None:
    def ask(request: ApprovalRequest) -> bool:
        raise KeyError("no chat room")

    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite", policy=policy_of(ask)) as payments:
        with client_for(payments) as client, pytest.raises(KeyError, match="no chat room"):
            client.chat(BODY)
        assert payments.ledger.authorizations().result() == []


@pytest.mark.parametrize("half", [{"approve_above": "1"}, {"approval": Person()}])
def test_half_a_rule_is_refused(half: dict) -> None:
    with pytest.raises(ConfigurationError, match="belong together"):
        SpendPolicy(**half)
