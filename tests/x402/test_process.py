"""What belongs to a process: forked children share nothing with their parent, and every program ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from opengradient_devnet import Account, Devnet
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.process import Ending, OwnLock, Process, Resident

START = """
import asyncio, gc, json, logging, multiprocessing, os, signal, sys, threading, time
from opengradient_x402 import AsyncGatewayClient, GatewayClient, Payments

def ask(text):
    return {"model": "openai/gpt-5", "messages": [{"role": "user", "content": text}]}

def forked(work):
    \"\"\"Runs `work` in a forked child; returns its exit code: 0 when all went well.\"\"\"
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            from opengradient_x402.process import end_all
            end_all()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def open_payments():
    return Payments.open()
"""

FACES = """
from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
"""


@pytest.fixture
def run(net: Devnet, account: Account, tmp_path: Path):
    """Runs a program with the wallet's environment; it must end well, in time, and say nothing."""
    file = tmp_path / "network.json"
    file.write_text(json.dumps(net.network))
    url = f"sqlite:///{tmp_path}/books.sqlite"
    environment = {
        **os.environ,
        "OG_NETWORK": str(file),
        "OG_PRIVATE_KEY": account.private_key,
        "OG_LEDGER_URL": url,
    }

    def start(program: str, *, start: str = START):
        ended = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", start + program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ended.stderr == ""
        assert ended.returncode == 0
        ledger = Ledger(url)
        try:
            return ledger.receipts().result(), ended.stdout
        finally:
            ledger.close()

    return start


def test_children_pay_for_themselves_and_everything_is_recorded_once(run):
    receipts, _ = run("""
payments = open_payments()
client = GatewayClient(payments)
mine = client.chat(ask("parent")).receipt

def work():
    assert payments.sessions.live() == []
    theirs = client.chat(ask("child"))
    assert theirs.receipt.authorization_id != mine.authorization_id
    client.chat(ask("child again"))

assert [forked(work) for _ in range(3)] == [0, 0, 0]
assert client.chat(ask("parent again")).receipt.authorization_id == mine.authorization_id
""")
    assert len(receipts) == 2 + 3 * 2
    assert len({receipt.call_id for receipt in receipts}) == len(receipts)
    assert len({receipt.authorization_id for receipt in receipts}) == 1 + 3


def test_a_fork_while_threads_call_and_the_ledger_writes(run):
    receipts, calls = run("""
payments = open_payments()
client = GatewayClient(payments)
client.chat(ask("warm up"))
stop, calls, problems = threading.Event(), [], []

def busy(number):
    while not stop.is_set():
        try:
            calls.append(client.chat(ask(f"thread {number}")).receipt.call_id)
        except Exception as exc:
            problems.append(exc)

threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()

def work():
    for _ in range(3):
        assert client.chat(ask("child")).content
    payments.ledger.flush()

codes = [forked(work) for _ in range(6)]
stop.set()
for thread in threads:
    thread.join()
assert (codes, problems) == ([0] * 6, []), (codes, problems)
print(len(calls))
""")
    assert len(receipts) == 1 + int(calls) + 6 * 3


def test_a_pool_of_processes_loses_no_receipt(run):
    receipts, _ = run(
        FACES
        + """
model, llm = ChatOpenGradient(model="openai/gpt-5"), OpenGradient(model="openai/gpt-5")
model.invoke("parent"), llm.complete("parent")

def work(number):
    assert model.invoke(f"langchain {number}").content
    assert llm.complete(f"llamaindex {number}").text

workers = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(60)
assert [worker.exitcode for worker in workers] == [0, 0]
"""
    )
    assert len(receipts) == 2 + 2 * 2
    assert len({receipt.authorization_id for receipt in receipts}) == 1 + 2, "both faces share a session"


def test_a_fork_inside_a_running_loop_leaves_its_streams_to_the_parent(run):
    receipts, _ = run("""
payments = open_payments()
client = AsyncGatewayClient(payments)
sync = GatewayClient(payments)

async def main():
    stream = await client.stream(ask("parent"))
    await anext(stream)
    other = sync.stream(ask("parent, sync"))
    next(other)

    def work():
        async def child():
            assert (await client.chat(ask("child"))).content
            try:
                while True:
                    await anext(stream)
            except Exception as exc:
                assert "before the process was forked" in str(exc), exc
        asyncio.run(child())
        assert sync.chat(ask("child, sync")).content
        other.close()
        gc.collect()

    assert forked(work) == 0
    assert [delta async for delta in stream]
    assert list(other)
    assert stream.receipt.outcome == other.receipt.outcome == "ok"

asyncio.run(main())
""")
    assert len(receipts) == 4
    assert {receipt.outcome for receipt in receipts} == {"ok"}


def test_a_child_holds_no_socket_of_its_parent(run):
    run("""
payments = open_payments()
client = GatewayClient(payments)
stream = client.stream(ask("parent"))
next(stream)

def sockets():
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return {name for name in names if name.startswith("socket:")}

mine = sockets()
assert mine

def work():
    assert not sockets() & mine

assert forked(work) == 0
assert list(stream)
""")


def test_a_child_that_was_forked_twice_still_works(run):
    receipts, _ = run("""
client = GatewayClient(open_payments())
client.chat(ask("parent"))

def grandchild():
    assert client.chat(ask("grandchild")).content

def child():
    assert client.chat(ask("child")).content
    assert forked(grandchild) == 0
    assert client.chat(ask("child again")).content

assert forked(child) == 0
""")
    assert len(receipts) == 4
    assert len({receipt.authorization_id for receipt in receipts}) == 3


@pytest.mark.parametrize("first", ["from opengradient_x402 import Reconciler", ""])
def test_a_program_with_two_models_ends_whatever_it_imports_first(run, first):
    receipts, _ = run(
        """
from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
writer, critic = ChatOpenGradient(model="openai/gpt-5"), OpenGradient(model="google/gemini-2.5-flash")
writer.invoke("a"), critic.complete("b")
""",
        start=first + "\n",
    )
    assert len(receipts) == 2


def test_streams_that_are_open_at_the_end_are_recorded_and_nothing_is_said(run):
    receipts, _ = run(
        FACES
        + """
model, llm = ChatOpenGradient(model="openai/gpt-5"), OpenGradient(model="openai/gpt-5")
first = model.stream("a"); next(first)
second = llm.stream_complete("b"); next(second)
third = GatewayClient(open_payments()).stream(ask("c")); next(third)

async def main():
    global fourth, fifth
    fourth = model.astream("d"); await anext(fourth)
    fifth = await AsyncGatewayClient(open_payments()).stream(ask("e")); await anext(fifth)

asyncio.run(main())
"""
    )
    assert len(receipts) == 5
    assert "unknown" not in {receipt.outcome for receipt in receipts}


def test_a_stream_that_a_thread_reads_at_the_end_does_not_hold_the_program(run):
    receipts, _ = run("""
client = GatewayClient(open_payments())

is_reading = threading.Event()

def read():
    while True:
        for _ in client.stream(ask("endless")):
            is_reading.set()
            time.sleep(0.05)

threading.Thread(target=read, daemon=True).start()
assert is_reading.wait(60)
""")
    assert receipts


def test_what_is_written_when_the_program_ends_is_written(run):
    receipts, _ = run("""
client = GatewayClient(open_payments())
for number in range(20):
    client.chat(ask(str(number)))
""")
    assert len(receipts) == 20


class Recorder(Resident):
    def __init__(self, name, heard, *, is_broken=False):
        self.name, self.heard, self.is_broken = name, heard, is_broken

    def _end(self, timeout_s, /):
        self.heard.append((self.name, timeout_s > 0))
        if self.is_broken:
            raise RuntimeError("cannot end")


def test_residents_end_in_order_whoever_came_first_and_whoever_fails(caplog: pytest.LogCaptureFixture):
    process = Process()
    heard: list[tuple[str, bool]] = []
    residents = [(Recorder(ending.name, heard, is_broken=ending is Ending.STREAMS), ending) for ending in Ending]
    for resident, ending in reversed(residents):
        process.add(resident, ending)
    process.end(5.0)
    assert heard == [(ending.name, True) for ending in Ending]
    assert "could not be closed in good order" in caplog.text


def test_a_lock_that_another_thread_held_is_free_in_a_child():
    lock = OwnLock()
    thread = threading.Thread(target=lock.__enter__)  # it ends with the lock in its hands
    thread.start()
    thread.join()
    lock._renew()
    with lock, lock:
        pass
