"""One machine: its two clocks, and the processes that pay from it, with a ledger that is performed step by step.

A ledger here is the product's own, on a real SQLite file, but for its thread: `step` performs some of the waiting jobs
in one transaction. A process that has died leaves what was committed, and nothing else.
"""

from __future__ import annotations

import gc
import logging
import ssl
import sys
import threading
import time as real_time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx

from opengradient_x402 import effects
from opengradient_x402.chain import node as chain_node
from opengradient_x402.channels import rides
from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.gateway import connections
from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
from opengradient_x402.keys.signer import Signer
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.writer import Job, Writer
from opengradient_x402.networks import Network
from opengradient_x402.payment import call as calls
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.sessions import SessionPool


class Machine:
    """The clocks. The wall clock may be wrong; the steady one stands still while the machine sleeps."""

    def __init__(self, now_s: float) -> None:
        self.true_s = now_s
        self.wall_off_s = 0.0
        self.steady_s = 1000.0

    def advance(self, seconds: float) -> None:
        self.true_s += seconds
        self.steady_s += seconds

    def sleep(self, seconds: float) -> None:
        self.true_s += seconds


class Time:
    """Stands in for the module `time` in the product's modules: the clocks of the machine that runs now."""

    def __init__(self) -> None:
        self.machine = Machine(0.0)
        self.advance: Callable[[float], None] = self.machine.advance

    def time(self) -> float:
        return self.machine.true_s + self.machine.wall_off_s

    def monotonic(self) -> float:
        return self.machine.steady_s

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def gmtime(self, seconds: float | None = None) -> real_time.struct_time:
        return real_time.gmtime(self.time() if seconds is None else seconds)

    strftime = staticmethod(real_time.strftime)


class Outcome(Future[Any]):
    """A future that is never waited for: whoever asks for its result has it made now."""

    make: Callable[[], None] | None = None

    def result(self, timeout: float | None = None) -> Any:
        while not self.done() and self.make is not None:
            self.make()
        return super().result(0)


class Stage:
    """What takes the place of threads, sockets and clocks while simulations run."""

    def __init__(self) -> None:
        self.time = Time()
        self.ident = 0
        """Stands for the thread that runs now: each call has one of its own."""
        self.in_thread: Callable[..., Future[Any]] = lambda work, *, name: Outcome()
        self.ask_node: Callable[[httpx.Request], httpx.Response] = lambda request: httpx.Response(500, request=request)

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Puts clocks, threads and lines of the product's modules under the simulation's control."""
        for room in ("channels", "ledger", "payment", "settlement"):  # what comes later would have its own clock
            for module in iter_modules(import_module(f"opengradient_x402.{room}").__path__):
                import_module(f"opengradient_x402.{room}.{module.name}")
        import_module("opengradient_x402.chain.questions")
        changed: list[tuple[Any, str, Any]] = []

        def replace(where: Any, name: str, by: Any) -> None:
            changed.append((where, name, getattr(where, name)))
            setattr(where, name, by)

        stage = self

        class Line:
            def send(self, request: httpx.Request) -> httpx.Response:
                return stage.ask_node(request)

            def __enter__(self) -> Line:
                return self

            def __exit__(self, *_: object) -> None: ...

        class Threads:
            RLock = staticmethod(threading.RLock)

            @staticmethod
            def get_ident() -> int:
                return stage.ident

        replace(rides, "threading", Threads)
        real_line = chain_node.Line
        for name, module in list(sys.modules.items()):
            if name.startswith("opengradient_x402."):
                if getattr(module, "time", None) is real_time:
                    replace(module, "time", self.time)
                if getattr(module, "in_thread", None) is effects.in_thread and module is not effects:
                    replace(module, "in_thread", lambda work, *, name: self.in_thread(work, name=name))
                if getattr(module, "Line", None) is real_line:
                    replace(module, "Line", Line)
        empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # no request goes over it, and loading authorities takes 20 ms
        replace(connections, "context_for", lambda endpoint: empty)
        replace(calls._ids, "draw", calls._ids.draw)
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        # What is collected ends streams and calls: that happens where a world says so, or a seed would not repeat.
        gc.disable()
        gc.freeze()
        try:
            yield
        finally:
            gc.enable()
            logging.disable(disabled)
            for where, name, value in reversed(changed):
                setattr(where, name, value)


class Died(BaseException):
    """The process was killed, in the middle of a transaction."""


class SteppedLedger(Ledger):
    """A ledger without a thread: `step` performs what waits, or a part of it, in one transaction."""

    def __init__(self, path: Path, *, woken: Callable[[], None], committed: Callable[[set[str]], None]) -> None:
        super().__init__(path)
        self.is_dead = False
        self._jobs: deque[tuple[Job, str | None]] = deque()
        self._woken, self._committed = woken, committed
        self._writer = Writer(
            self._location,
            self._queue,
            recorder=self._recorder,
            journal=self._journal,
            under_way=self.under_way,
            may_end=lambda: False,
        )
        self._about: str | None = None

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    def authorize(self, authorization: Authorization, **options: Any) -> Future[Authorization]:
        return self._changing(authorization.id, lambda: super(SteppedLedger, self).authorize(authorization, **options))

    def mark_unsent(self, authorization_id: str) -> Future[None]:
        return self._changing(authorization_id, lambda: super(SteppedLedger, self).mark_unsent(authorization_id))

    def record_call(self, receipt: SettlementReceipt, *, at_once: bool = True) -> Future[None]:
        return Outcome() if self.is_dead else super().record_call(receipt, at_once=at_once)

    def record_settlement(self, authorization: Authorization) -> Future[None]:
        return self._changing(authorization.id, lambda: super(SteppedLedger, self).record_settlement(authorization))

    def about(self, what: str, submit: Callable[[], Future[Any]]) -> Future[Any]:
        """Submits what changes this authorization or channel."""
        return self._changing(what, submit)

    def _changing(self, authorization_id: str, submit: Callable[[], Future[Any]]) -> Future[Any]:
        self._about = authorization_id
        try:
            return submit()
        finally:
            self._about = None

    def submit(self, work: Any, **options: Any) -> Future[Any]:
        future = Outcome()
        if self.is_dead:
            return future  # nobody will ever hear
        future.make = self._step_all
        options = {"writes": True, "durable": False, "otherwise": "Nothing was paid."} | options
        self._jobs.append((Job(work=work, future=future, **options), self._about))
        if len(self._jobs) == 1:
            self._woken()
        return future

    def _step_all(self) -> None:
        self.step(len(self._jobs))

    def step(self, count: int) -> None:
        """Performs the first `count` jobs in one transaction."""
        some = [self._jobs.popleft() for _ in range(min(count, len(self._jobs)))]
        self._writer._perform([job for job, _ in some if job.future.set_running_or_notify_cancel()])
        if touched := {about for _, about in some if about is not None}:
            self._committed(touched)

    def die(self, *, performing: int) -> None:
        """The process is killed while the first `performing` jobs are in a transaction."""
        self.is_dead = True
        if performing and self._jobs:

            def killed(*_: object) -> None:
                raise Died

            jobs = [job for job, _ in self._jobs][:performing]
            last = Job(work=killed, writes=False, durable=False, future=Future(), otherwise="")
            with suppress(Died):
                self._writer._perform([*jobs, last])
        self._jobs.clear()
        self._writer._disconnect()
        self._journal.renew()  # lets go of its files, as the end of a process does
        self.under_way.renew()


class WatchedBook(ChannelBook):
    """A book of channels that says which one a job changes."""

    def __init__(self, ledger: SteppedLedger) -> None:
        super().__init__(ledger)
        self._stepped = ledger

    def reserve(self, channel: Channel, authorization: Authorization, **options: Any) -> Future[Any]:
        return self._stepped.about(
            channel.id, lambda: super(WatchedBook, self).reserve(channel, authorization, **options)
        )

    def charge(self, voucher: Voucher, charged_atomic: int) -> Future[None]:
        return self._stepped.about(voucher.channel_id, lambda: super(WatchedBook, self).charge(voucher, charged_atomic))

    def correct(self, voucher: Voucher, charged_atomic: int, **options: Any) -> Future[Any]:
        return self._stepped.about(
            voucher.channel_id, lambda: super(WatchedBook, self).correct(voucher, charged_atomic, **options)
        )

    def deposit(self, channel_id: str, deposit: Deposit) -> Future[None]:
        return self._stepped.about(channel_id, lambda: super(WatchedBook, self).deposit(channel_id, deposit))

    def drop(self, voucher: Voucher) -> Future[None]:
        return self._stepped.about(voucher.channel_id, lambda: super(WatchedBook, self).drop(voucher))


class Process:
    """A process that pays: one wallet, one ledger, two clients for each gateway (one blocks, one awaits)."""

    def __init__(
        self,
        *,
        network: Network,
        signer: Signer,
        policy: SpendPolicy,
        ledger: SteppedLedger,
        origins: list[str],
        time: Time,
        timeout_s: float,
    ) -> None:
        self.is_dead = False
        self.is_ledger_woken = False
        self.ledger = ledger
        self.payments = Payments(network=network, signer=signer, policy=policy, ledger=ledger)
        self.payments.sessions = SessionPool(idle_s=network.session_idle_s, clock=time.monotonic, wall_clock=time.time)
        self.payments.rides.book = WatchedBook(ledger)
        options: dict[str, Any] = {"http_transport": httpx.MockTransport(_never), "timeout_s": timeout_s}
        self.clients: dict[tuple[str, bool], Any] = {}
        for origin in origins:
            self.clients[origin, True] = GatewayClient(self.payments, base_url=origin, **options)
            self.clients[origin, False] = AsyncGatewayClient(self.payments, base_url=origin, **options)


def _never(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was sent past the simulation")
