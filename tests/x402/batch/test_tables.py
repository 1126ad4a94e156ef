"""Tables in, tables out: every form, wrong rows, many rows at once, and keys that do not travel."""

from __future__ import annotations

import asyncio
import pickle
import time

import numpy as np
import pandas as pd
import pytest

from opengradient_devnet.faults import AnswerStatus
from opengradient_x402 import ChatBatch, SpendPolicy
from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey, LedgerUnavailable
from support.batches import Holding, environment
from support.payers import opg_balance, payments_for, settled_receipts

MODEL = {"model": "openai/gpt-5", "parameters": {"max_tokens": 20}}


@pytest.fixture
def env(net, account, tmp_path, monkeypatch):
    values = environment(net, account, tmp_path)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def batch(payments):
    with ChatBatch(**MODEL, payments=payments) as made:
        yield made


def test_a_list_of_prompts_comes_back_with_answers_costs_and_receipts(batch, net, payments, account):
    before = opg_balance(net, account.address)
    out = batch(["What is x402?", "What is a nonce?"])
    assert [row["prompt"] for row in out] == ["What is x402?", "What is a nonce?"]
    assert all("You said: " in row["answer"] and row["finish_reason"] in ("stop", "length") for row in out)
    assert all(row["money"] == "paid" and row["error"] is None and not row["reused"] for row in out)
    receipts = {receipt.call_id: receipt for receipt in settled_receipts(net, payments)}
    for row in out:
        receipt = receipts[row["call_id"]]
        assert row["cost_atomic"] == str(receipt.settled_atomic)
        assert row["cost"] == payments.network.asset.format(receipt.settled_atomic).split()[0]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (receipt.prompt_tokens, receipt.completion_tokens)
    assert before - opg_balance(net, account.address) == sum(int(row["cost_atomic"]) for row in out)


def test_many_rows_are_under_way_at_once_and_no_more_than_allowed(devnets, tmp_path):
    model = Holding()
    net = devnets(upstream=model)
    account = net.account(opg="10", approved=True)
    with (
        payments_for(net, account, tmp_path / "held.sqlite") as payments,
        ChatBatch(**MODEL, payments=payments, max_in_flight=7) as batch,
    ):
        batch(["the session is open"])
        model.hold_after(0)

        async def all_of_them():
            work = asyncio.ensure_future(batch.answered([f"row {number}" for number in range(40)]))
            until = time.monotonic() + 30
            while model.held < 7 and time.monotonic() < until:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # more than are allowed would come now
            most = model.held
            model.let_go()
            return most, await work

        most, out = asyncio.run(all_of_them())
    assert most == 7
    assert [row["prompt"] for row in out] == [f"row {number}" for number in range(40)]
    assert all(f"row {number}" in row["answer"] for number, row in enumerate(out))


def test_a_frame_keeps_its_index_and_its_gaps_become_the_given_parameters(batch):
    frame = pd.DataFrame(
        {
            "question": ["What is gas?", "What is a block?", None],
            "max_tokens": [5, None, 5],
            "model": [None, "anthropic/claude-sonnet-4-6", None],
        },
        index=[7, 3, 5],
    )
    with ChatBatch(**MODEL, payments=batch._route.payments, columns={"prompt": "question"}) as named:
        out = named(frame)
    assert list(out.index) == [7, 3, 5]
    assert list(out.columns[:3]) == ["question", "max_tokens", "model"]
    assert out["completion_tokens"].tolist()[:2] == [5, 20]
    assert "claude-sonnet-4-6" in out["answer"][3]
    assert out["finish_reason"][7] == "length"
    assert out["answer"][5] is None
    assert "no prompt" in out["error"][5]
    assert out["money"].tolist() == ["paid", "paid", "not_paid"]
    assert out["completion_tokens"].isna().tolist() == [False, False, True]


def test_a_dict_of_columns_is_answered_as_ray_passes_it(batch):
    messages = np.empty(2, dtype=object)
    messages[:] = [
        np.array([{"role": "system", "content": "Be kind.", "name": None}, {"role": "user", "content": "Hello"}]),
        '[{"role": "user", "content": "Bye"}]',
    ]
    out = batch({"id": np.array([1, 2]), "messages": messages})
    assert [type(column) for column in out.values()] == [np.ndarray] * len(out)
    assert out["id"].tolist() == [1, 2]
    assert "Hello" in out["answer"][0]
    assert "Bye" in out["answer"][1]


def test_wrong_rows_say_what_is_wrong_and_cost_nothing_while_others_are_answered(batch, net, payments):
    out = batch(
        [
            {"prompt": "Hello"},
            {"prompt": ""},
            {"prompt": 5},
            {"prompt": "Hello", "system": b"Be short."},
            {"messages": [{"role": "user"}]},
            {"messages": [{"role": "system", "content": {"text": "Be short."}}]},
            {"messages": "[not json"},
            {"messages": ["text"]},
            {"prompt": "Hello", "temperature": 7.0},
            {"prompt": "Hello", "model": "openai/gpt-nowhere"},
            {"prompt": "Hello", "settlement_mode": "loud"},
            {"prompt": "Bye", "system": "Be short.", "temperature": 0.5},
        ]
    )
    assert [row["error"] is None for row in out] == [True, *[False] * 10, True]
    assert {row["money"] for row in out[1:-1]} == {"not_paid"}
    assert {row["cost_atomic"] for row in out[1:-1]} == {"0"}
    assert all("othing was paid" in row["error"] for row in out[1:-1])
    assert len(settled_receipts(net, payments)) == 2


def test_a_row_that_fails_after_its_payment_says_why_and_what_was_paid(batch, net):
    batch(["the session is open"])
    net.faults.inject(AnswerStatus(status=503, body='{"error": "overloaded"}'), skip=1)
    out = batch([f"row {number}" for number in range(3)])
    [failed] = [row for row in out if row["error"]]
    assert failed["error_type"] == "GatewayError"
    assert "overloaded" in failed["error"]
    assert failed["money"] == "paid"
    assert failed["call_id"].startswith("call_")
    assert sum(row["error"] is None for row in out) == 2


def test_rows_beyond_the_budget_are_not_paid(devnets, tmp_path):
    net = devnets(schemes=("exact-permit2",), exact_price_opg="0.01")
    account = net.account(opg="10", approved=True)
    with (
        payments_for(net, account, tmp_path / "b.sqlite", policy=SpendPolicy(max_per_day="0.05")) as payments,
        ChatBatch(**MODEL, payments=payments) as batch,
    ):
        out = batch([f"row {number}" for number in range(12)])
    assert sum(row["error"] is None for row in out) == 5
    assert {row["error_type"] for row in out if row["error"]} == {"BudgetExceeded"}
    assert opg_balance(net, account.address) == 10 * 10**18 - 5 * 10**16


async def test_a_call_works_inside_a_running_loop(batch):
    assert batch(["Hello"])[0]["money"] == "paid"
    assert (await batch.answered(["Hello"]))[0]["money"] == "paid"


def test_an_empty_table_stays_empty(batch):
    assert batch([]) == []
    out = batch(pd.DataFrame({"prompt": []}))
    assert len(out) == 0
    assert "answer" in out.columns


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("a prompt", "called with a str"),
        ([{"text": "Hello"}], "neither a column 'messages' nor 'prompt'"),
        ([{"prompt": "Hello", "answer": "Hi"}], "prefix="),
        ([1, 2], "called with a list"),
        ({"prompt": "Hello"}, "'prompt' is a str"),
        ({"prompt": ["Hello", "Bye"], "seed": [1]}, "different lengths"),
        (pd.DataFrame([["Hello", "Bye"]], columns=["prompt", "prompt"]), "2 columns with the name 'prompt'"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_before_anything_is_paid(batch, table, words):
    with pytest.raises(ConfigurationError, match=words):
        batch(table)


def test_new_columns_stand_behind_a_prefix(payments):
    with ChatBatch(**MODEL, payments=payments, prefix="og_") as batch:
        [row] = batch([{"prompt": "Hello", "answer": "Hi"}])
    assert row["answer"] == "Hi"
    assert "Hello" in row["og_answer"]


# -- keys stay where they are


def test_a_key_that_would_travel_is_refused_and_not_shown(account):
    with pytest.raises(InvalidPrivateKey, match="travel") as refused:
        ChatBatch(**MODEL, private_key=account.private_key)
    assert account.private_key[2:] not in str(refused.value)
    with pytest.raises(InvalidPrivateKey, match="travel") as refused:
        ChatBatch(model="openai/gpt-5", parameters={"private_key": account.private_key})
    assert account.private_key[2:] not in str(refused.value)
    with pytest.raises(ConfigurationError, match="password"):
        ChatBatch(**MODEL, ledger="postgresql+psycopg://og:secret@db/ledger")


def test_a_pickle_holds_no_key_and_works_where_it_is_opened(env, tmp_path):
    with ChatBatch(**MODEL, call_key="id", answers=tmp_path / "answers") as batch:
        batch([{"id": 1, "prompt": "Hello"}])
        content = pickle.dumps(batch)
    assert env["OG_PRIVATE_KEY"].removeprefix("0x").encode() not in content
    assert bytes.fromhex(env["OG_PRIVATE_KEY"].removeprefix("0x")) not in content
    with pickle.loads(content) as again:
        assert again([{"id": 1, "prompt": "Hello"}])[0]["reused"]
        assert again([{"id": 2, "prompt": "Hello"}])[0]["money"] == "paid"


def test_open_payments_do_not_travel(batch):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(batch)


def test_the_key_is_read_from_a_file_where_it_works(env, monkeypatch, tmp_path):
    file = tmp_path / "key"
    file.write_text(env["OG_PRIVATE_KEY"])
    monkeypatch.delenv("OG_PRIVATE_KEY")
    with pytest.raises(InvalidPrivateKey, match="no private key"):
        ChatBatch(**MODEL)
    monkeypatch.setenv("OG_PRIVATE_KEY_FILE", str(file))
    with ChatBatch(**MODEL) as batch:
        assert batch(["Hello"])[0]["money"] == "paid"


def test_options_that_make_no_sense_are_refused(payments, tmp_path):
    (tmp_path / "file").touch()
    for options in ({"call_key": "id"}, {"answers": tmp_path}, {"max_in_flight": 0}, {"columns": {"promt": "x"}}):
        with pytest.raises(ConfigurationError, match="othing was paid"):
            ChatBatch(**MODEL, payments=payments, **options)
    for name in ("settlement_mode", "prompt", "max_tokenz"):
        with pytest.raises(ConfigurationError, match=f"{name}.*othing was paid"):
            ChatBatch(model="openai/gpt-5", payments=payments, parameters={name: "private"})
    with pytest.raises(LedgerUnavailable, match="folder of answers"):
        ChatBatch(**MODEL, payments=payments, call_key="id", answers=tmp_path / "file")
