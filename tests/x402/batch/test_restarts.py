"""Jobs that are killed and started again, and workers that meet: no row is paid twice, and what is lost is said."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import KillSession
from opengradient_x402 import ChatBatch
from opengradient_x402.batch.answers import Answers, Kept
from opengradient_x402.errors import CallKnown, ConfigurationError
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.recorder import CallUnderWay
from opengradient_x402.settlement.reconciler import Reconciler
from support.batches import SESSIONS, SIGNATURES, Holding, Job, Swallowing, environment
from support.matrix import one_in
from support.payers import PROMPT, async_client_for, network_of, opg_balance, payments_for

ROWS = [{"id": number, "prompt": f"Row {number}, please"} for number in range(24)]
AT_ONCE = 6
ONCE = Counter(row["prompt"] for row in ROWS)


def options(folder, **more):
    return {
        "model": "openai/gpt-5",
        "parameters": {"max_tokens": 20},
        "call_key": "id",
        "answers": str(folder / "answers"),
        "max_in_flight": AT_ONCE,
        "wait_settled_s": 20,
        **more,
    }


class Books:
    """What the chain took from the wallet, and what the ledger says of it."""

    def __init__(self, net: Devnet, account, folder) -> None:
        self._net, self._account = net, account
        self._ledger = Ledger(folder / "job.sqlite")
        self._before = opg_balance(net, account.address)

    def close(self) -> None:
        self._net.close_sessions()
        Reconciler(network_of(self._net), self._ledger).reconcile()
        self.taken = self._before - opg_balance(self._net, self._account.address)
        self.receipts = {receipt.call_id: receipt for receipt in self._ledger.receipts().result()}
        self.authorizations = self._ledger.authorizations().result()
        self._ledger.close()

    def paid(self, row) -> int:
        return self.receipts[row["call_id"]].settled_atomic


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Sets up a job on a devnet; returns its environment and its books."""

    def set_up(net):
        account = net.account(opg="10", approved=True)
        env = environment(net, account, tmp_path)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return env, Books(net, account, tmp_path)

    return set_up


def run(rows, folder, **more):
    with ChatBatch(**options(folder, **more)) as batch:
        return batch(rows)


@pytest.mark.parametrize("has_sessions", one_in(2, [True, False]), ids=["session", "no session"])
def test_rows_that_were_served_when_the_job_was_killed_are_lost_and_only_paid_again_on_request(
    tmp_path, job, has_sessions
):
    model = Holding()
    with Devnet(upstream=model, sessions=has_sessions, idle_timeout_s=0.5) as net:
        env, books = job(net)
        model.hold_after(10)
        Job(ROWS, options(tmp_path), env).kill_when(lambda: model.held == AT_ONCE)
        model.let_go()

        again = run(ROWS, tmp_path)
        assert Counter(row["error_type"] for row in again) == {None: 18, "AnswerLost": AT_ONCE}
        assert sum(row["reused"] for row in again) == 10
        lost = [row for row in again if row["error"]]
        assert all(row["money"] == "paid" and int(row["cost_atomic"]) > 0 for row in lost)
        assert all("pay_again=True" in row["error"] and row["call_id"] in row["error"] for row in lost)
        assert model.answered == ONCE

        third = run(ROWS, tmp_path)
        assert [row["answer"] for row in third] == [row["answer"] for row in again]
        assert model.answered == ONCE

        last = run(ROWS, tmp_path, pay_again=True)
        assert all(f"Row {row['id']}" in row["answer"] for row in last)
        assert model.answered.total() == len(ROWS) + AT_ONCE
        books.close()
    assert books.taken == sum(receipt.settled_atomic for receipt in books.receipts.values())
    assert len(books.receipts) == len(ROWS) + AT_ONCE
    if not has_sessions:
        assert Counter(one.status for one in books.authorizations) == {"settled": len(ROWS) + AT_ONCE}


def test_a_gateway_that_gives_answers_again_leaves_no_row_without_one_and_is_paid_once_for_each(tmp_path, job):
    model = Holding()
    with Devnet(upstream=model, sessions=False, gives_answers_again=True) as net:
        env, books = job(net)
        model.hold_after(10)
        Job(ROWS, options(tmp_path), env).kill_when(lambda: model.held == AT_ONCE)
        model.let_go()
        again = run(ROWS, tmp_path)
        assert [row["error"] for row in again] == [None] * len(ROWS)
        assert all(f"Row {row['id']}" in row["answer"] for row in again)
        assert model.answered == ONCE
        books.close()
    assert Counter(one.status for one in books.authorizations) == {"settled": len(ROWS)}
    assert all(len(one.signed) == 1 for one in books.authorizations)
    assert books.taken == sum(books.paid(row) for row in again)
    assert {receipt.outcome for receipt in books.receipts.values()} == {"ok"}


def test_a_row_whose_payment_opened_a_session_is_not_charged_again_while_it_is_open(tmp_path, job):
    model = Holding()
    with Devnet(upstream=model, idle_timeout_s=30.0) as net:
        _, books = job(net)
        first = run(ROWS[:3], tmp_path)
        assert [row["error"] for row in first] == [None] * 3
        for file in (tmp_path / "answers").glob("*.jsonl"):
            file.unlink()
        again = run(ROWS[:3], tmp_path, wait_settled_s=1)
        assert [row["error_type"] for row in again] == ["AnswerLost"] * 3
        assert set(model.answered.values()) == {1}
        books.close()
    assert books.taken == sum(int(row["cost_atomic"]) for row in first)
    assert {receipt.status for receipt in books.receipts.values()} == {"settled"}


def test_a_row_that_was_under_way_when_its_session_was_opened_is_not_asked_again_in_it(tmp_path, job):
    model = Holding()
    with Devnet(upstream=model, idle_timeout_s=4.0) as net:
        env, books = job(net)
        model.hold_after(0)
        Job(ROWS[:1], options(tmp_path), env).kill_when(lambda: model.held == 1)
        model.let_go()
        early = run(ROWS[:1], tmp_path, wait_settled_s=0.5)
        assert [row["error_type"] for row in early] == ["PaymentOutcomeUnknown"]
        late = run(ROWS[:1], tmp_path)
        assert [row["error_type"] for row in late] == ["AnswerLost"]
        assert set(model.answered.values()) == {1}
        books.close()
    [receipt] = books.receipts.values()
    assert books.taken == receipt.settled_atomic > 0


def test_a_payment_that_never_reached_the_gateway_is_offered_again_under_its_own_nonce(tmp_path, job):
    with (
        Devnet(sessions=False, idle_timeout_s=2.0) as net,  # so long a session could be open, for all that is known
        Swallowing(net.gateway_url, header=SIGNATURES, after=4) as relay,
    ):
        env, books = job(net)
        Job(ROWS, options(tmp_path), {**env, "OG_GATEWAY_URL": relay.url}).kill_when(lambda: relay.swallowed == AT_ONCE)
        nonces = {one.nonce for one in Ledger(tmp_path / "job.sqlite").authorizations().result()}
        again = run(ROWS, tmp_path, wait_settled_s=3)
        assert [row["error"] for row in again] == [None] * len(ROWS)
        books.close()
    signer = LocalSigner(env["OG_PRIVATE_KEY"])
    assert len(nonces) == 4 + AT_ONCE
    assert nonces <= {signer.nonce_for(row["call_id"]) for row in again}
    assert Counter(one.status for one in books.authorizations) == {"settled": len(ROWS)}
    assert books.taken == sum(books.paid(row) for row in again)


def test_rows_of_a_session_that_never_reached_the_gateway_are_called_anew_when_it_has_settled(tmp_path, job):
    model = Holding()
    with (
        Devnet(upstream=model, idle_timeout_s=0.5) as net,
        Swallowing(net.gateway_url, header=SESSIONS, after=4) as relay,
    ):
        env, books = job(net)
        Job(ROWS, options(tmp_path), {**env, "OG_GATEWAY_URL": relay.url}).kill_when(lambda: relay.swallowed >= AT_ONCE)
        again = run(ROWS, tmp_path)
        assert [row["error"] for row in again] == [None] * len(ROWS)
        assert model.answered == ONCE
        books.close()
    assert books.taken == sum(books.paid(row) for row in again)
    never = [receipt for receipt in books.receipts.values() if receipt.outcome == "unknown"]
    assert len(never) == relay.swallowed
    assert {receipt.settled_atomic for receipt in never} == {0}


def test_two_workers_with_the_same_rows_pay_for_each_of_them_once(tmp_path, devnets):
    model = Holding()
    net = devnets(upstream=model, idle_timeout_s=1.0)
    account = net.account(opg="10", approved=True)
    outs = {}

    def work(name):
        with (
            payments_for(net, account, tmp_path / "job.sqlite") as payments,
            ChatBatch(**options(tmp_path, payments=payments)) as batch,
        ):
            both.wait()
            outs[name] = batch(ROWS)

    both = threading.Barrier(2)
    workers = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [row["answer"] for row in outs["one"]] == [row["answer"] for row in outs["two"]]
    assert None not in [row["answer"] for row in outs["one"]]
    assert model.answered == ONCE


# -- the folder of answers


@pytest.fixture
def batch(payments, tmp_path):
    with ChatBatch(**options(tmp_path, payments=payments)) as made:
        yield made


def test_rows_with_an_answer_on_disk_are_not_called_again(batch, payments, net, account):
    first = batch(ROWS)
    calls = len(payments.ledger.receipts().result())
    second = batch(ROWS[::-1])
    assert [{**row, "reused": True} for row in first[::-1]] == second
    assert len(payments.ledger.receipts().result()) == calls == len(ROWS)


def test_rows_with_one_key_are_one_call_when_they_ask_the_same_and_an_error_when_not(batch, payments):
    out = batch(
        [{"id": "a", "prompt": "Hello"}, {"id": "a", "prompt": "Hello"}, {"id": "a", "prompt": "Bye"}, {"prompt": "Hi"}]
    )
    assert out[0]["answer"] == out[1]["answer"]
    assert sorted(row["reused"] for row in out[:2]) == [False, True]
    assert "another request" in out[2]["error"]
    assert "no key" in out[3]["error"]
    assert out[2]["money"] == out[3]["money"] == "not_paid"
    assert len(payments.ledger.receipts().result()) == 1


def test_another_folder_is_another_job(batch, payments, tmp_path):
    batch(ROWS[:2])
    with ChatBatch(**options(tmp_path, payments=payments, answers=tmp_path / "others")) as other:
        assert not any(row["reused"] or row["error"] for row in other(ROWS[:2]))
    assert len(payments.ledger.receipts().result()) == 4


def test_a_key_may_be_a_function_of_the_row(payments, tmp_path):
    key = lambda row: f"{row['table']}/{row['id']}"  # noqa: E731
    with ChatBatch(**options(tmp_path, payments=payments, call_key=key)) as batch:
        out = batch([{"table": table, "id": 1, "prompt": f"Hello {table}"} for table in "ab"])
    assert [row["error"] for row in out] == [None, None]


def test_a_line_that_was_cut_short_is_no_answer_and_its_row_is_not_paid_again(batch, tmp_path, payments):
    batch(ROWS[:3])
    batch.close()
    [file] = (tmp_path / "answers").glob("*.jsonl")
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    last = json.loads(content.splitlines()[-1])["key"]
    with ChatBatch(**options(tmp_path, payments=payments)) as again:
        out = again(ROWS[:3])
    assert {str(row["id"]) for row in out if row["error_type"] == "AnswerLost"} == {last}
    assert sum(row["reused"] for row in out) == 2
    assert len(payments.ledger.receipts().result()) == 3


def test_lines_that_somebody_edited_are_no_answers(tmp_path):
    store = Answers(tmp_path)
    lines = [None, 5, [], {"key": 1}, {"key": "a", "asked": "x", "columns": None}, {"key": "a", "columns": {}}]
    (tmp_path / "edited.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "\xff\n")
    store.look()
    assert store.find("a") is None
    store.close()


def test_answers_of_all_processes_are_found_and_the_job_is_the_same_for_all(tmp_path):
    one, two = Answers(tmp_path / "a"), Answers(tmp_path / "a")
    assert one.job == two.job
    one.keep("ä", Kept(asked="x", columns={"answer": "1"}))
    two.keep("b", Kept(asked="x", columns={"answer": "2"}))
    assert two.find("ä") is None
    two.look()
    assert two.find("ä").columns == {"answer": "1"}
    one.look()
    assert one.find("b").columns == {"answer": "2"}
    one.close()
    two.close()


async def test_a_call_that_was_given_up_is_not_made_by_the_process_that_began_it(net, payments, tmp_path):
    client = async_client_for(payments)
    first = await client.chat(PROMPT)
    [opened] = payments.ledger.authorizations().result()
    call_id = "call_" + "ab" * 12
    begun = CallUnderWay(call_id, opened.id, first.receipt.created_at, "batch", "openai/gpt-5")
    payments.ledger.begin_call(opened, begun).result()
    assert payments.ledger.give_up_call(call_id, opened.id).result()
    payments.ledger.not_sent(call_id, opened.id)
    net.close_sessions()
    with pytest.raises(CallKnown, match="made before"):
        await client.chat(PROMPT, call_id=call_id)
    assert len(payments.ledger.authorizations().result()) == 1
    await client.aclose()


@pytest.mark.parametrize("scheme", ["upto", "exact-permit2", "batch-settlement"])
async def test_a_call_under_a_given_id_is_made_once_in_every_way_to_pay(devnets, tmp_path, scheme):
    net = devnets(schemes=(scheme,))
    account = net.account(opg="10", approved=True)
    with payments_for(net, account, tmp_path / "once.sqlite") as payments:
        client = async_client_for(payments)
        call_id = "call_" + "cd" * 12
        assert (await client.chat(PROMPT, call_id=call_id)).receipt.call_id == call_id
        with pytest.raises(CallKnown) as refused:
            await client.chat(PROMPT, call_id=call_id)
        assert refused.value.money == "not_paid"
        assert len(payments.ledger.receipts().result()) == 1
        [kept] = payments.ledger.authorizations().result()
        assert kept.status == "signed"  # what was refused now does not free what may still be taken
        with pytest.raises(ConfigurationError, match="call id"):
            await client.chat(PROMPT, call_id="call_of my own")
        await client.aclose()


async def test_a_keyed_call_whose_session_has_ended_pays_anew_under_the_same_id(net, payments):
    client = async_client_for(payments)
    await client.chat(PROMPT)
    net.faults.inject(KillSession())
    call_id = "call_" + "ef" * 12
    answer = await client.chat(PROMPT, call_id=call_id)
    assert answer.receipt.nonce == str(payments.signer.nonce_for(call_id))
    assert len(payments.ledger.receipts().result()) == 2
    await client.aclose()
