"""Two hundred processes that are killed while they pay: every signature that the gateway saw is in the ledger."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from opengradient_devnet import Devnet
from opengradient_x402.ledger.upkeep import check
from opengradient_x402.payment.challenge import SIGNATURE_HEADER
from simulation.gateways import Signature, signature_in
from support.payers import opg_balance, payments_for, settled_receipts
from support.postgresql import running_server
from support.relay import Relay

KILLS = int(os.environ.get("SOAK_KILLS", "200"))
AT_ONCE = 4
_SIGNATURE = re.compile(rb"\r\n" + SIGNATURE_HEADER.encode() + rb": ([^\r]+)\r\n", re.IGNORECASE)


class ListeningRelay(Relay):
    """Keeps the payments that pass to the gateway, as they came over the wire."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.payments: set[bytes] = set()
        self.requests = 0

    def _copy(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        passed = b""
        with suppress(OSError):
            while data := source.recv(65536):
                if from_client:
                    passed = passed[-20_000:] + data
                    self.requests += data.startswith(b"POST")
                    self.payments.update(_SIGNATURE.findall(passed))
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def signatures(self) -> list[Signature]:
        requests = (httpx.Request("POST", "http://relay", headers={SIGNATURE_HEADER: text}) for text in self.payments)
        return [signature for signature in map(signature_in, requests) if signature is not None]


@contextmanager
def ledgers(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty ledger."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'ledger.sqlite'}"
    else:
        with running_server() as server:
            yield server.new_database()


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("has_sessions", [True, False], ids=["session", "no session"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_kill_leaves_a_signature_that_the_ledger_does_not_know(tmp_path, kind, has_sessions):
    rng = random.Random(f"{kind} {has_sessions}")
    with (
        ledgers(kind, tmp_path) as url,
        Devnet(sessions=has_sessions, idle_timeout_s=0.5, max_timeout_s=30) as net,
        ListeningRelay(net.gateway_url) as relay,
    ):
        account = net.account(opg="10000", approved=True)
        before = opg_balance(net, account.address)
        network = tmp_path / "network.json"
        network.write_text(json.dumps({**net.network, "gateway_url": relay.url}))
        task = {"network": str(network), "private_key": account.private_key, "ledger": url}
        began = time.monotonic()
        killed = _killed(task, rng, net, relay)
        with payments_for(net, account, url) as payments:
            settled_receipts(net, payments)
            time.sleep(max(0.0, 45 - (time.monotonic() - began)))  # until the last signature can be taken no more
            net.chain.rpc("evm_mine", [])
            settled_receipts(net, payments)
            authorizations = payments.ledger.authorizations().result()
        problems = check(url)
        taken = before - opg_balance(net, account.address)
    known = {(one.nonce, terms.amount_atomic, terms.deadline) for one in authorizations for terms in one.signed}
    seen = {(one.nonce, one.amount_atomic, one.deadline) for one in relay.signatures()}
    settled = sum(one.settled_atomic or 0 for one in authorizations)
    status = dict(Counter(one.status for one in authorizations))
    print(f"{kind}, {killed} kills, {relay.requests} calls: {len(seen)} signatures seen, {len(known)} in the ledger")
    print(f"{status}, {taken} taken, {settled} settled in the ledger", flush=True)
    assert seen <= known
    assert taken == settled > 0
    assert problems == []
    assert killed == KILLS
    assert relay.requests > 2 * KILLS
    assert len(seen) > KILLS / 10


def _killed(task: dict[str, str], rng: random.Random, net: Devnet, relay: ListeningRelay) -> int:
    """How many processes were killed in the middle of their work."""
    killed = 0
    program = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        alive: list[int] = []
        while killed < KILLS:
            while len(alive) < AT_ONCE:
                nursery.stdin.write(json.dumps(task | {"seed": killed + len(alive)}) + "\n")
                nursery.stdin.flush()
                alive.append(int(nursery.stdout.readline()))
            asked, began = relay.requests, time.monotonic()
            while relay.requests < asked + 4 and time.monotonic() - began < 5:
                time.sleep(0.01)  # on a busy machine too, calls are under way when one of them dies
            time.sleep(rng.random() * 0.2)
            if rng.random() < 0.2:
                net.close_sessions(wait_s=0)
            os.kill(alive.pop(rng.randrange(len(alive))), signal.SIGKILL)  # raises when it has ended by itself
            killed += 1
        for child in alive:
            os.kill(child, signal.SIGKILL)
        nursery.stdin.close()
    return killed
