"""One thread performs everything, in an order that one seed decides; after every step the auditor looks.

A `World` is one run: some hundred calls of a few processes on one machine, against a few gateways and nodes. Each seed
draws its own weather: which faults there are at all, and how often. The same seed makes the same steps.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from opengradient_x402.effects import Read, Send, Sleep, Steps, Wait
from opengradient_x402.errors import MoneyOutcome, OpenGradientError
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.money import Asset
from opengradient_x402.networks import Network
from opengradient_x402.payment import call as calls
from opengradient_x402.payment.challenge import SIGNATURE_HEADER
from opengradient_x402.payment.policy import SpendPolicy
from simulation.audit import Auditor
from simulation.broken import Broken
from simulation.chain import Chain
from simulation.desks import ChannelPayment
from simulation.gateways import CHANNEL_SCHEME, MODEL, Character, Gateway, Terms, allowed_in, signature_in
from simulation.machine import Machine, Outcome, Process, Stage, SteppedLedger
from simulation.node import Nodes, Weather

START_S = 1_790_000_000.0
OPG = 10**18
NETWORK = Network(
    name="simulated",
    chain_id=31402,
    rpc_url="https://node.simulated",
    gateway_url="https://gateway0.simulated",
    asset=Asset(
        address="0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
        symbol="OPG",
        decimals=18,
        name="OpenGradient",
        version="1",
    ),
    payees=frozenset({"0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"}),
)
PAYEE = next(iter(NETWORK.payees))
FACILITATOR = "0x240b09731D96979f50B2C649C9CE10FcF9C7987F"
SIGNER = LocalSigner("0x" + "11" * 32)
BODY = {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": "What is x402?"}]}
_SCHEMES = (
    *[("upto", "permit2")] * 4,
    ("exact", "permit2"),
    ("exact", "eip3009"),
    *[(CHANNEL_SCHEME, "permit2"), (CHANNEL_SCHEME, "eip3009")] * 2,
)
_FINAL_S = 2_000.0
_A_DAY_S = 90_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may happen in a run at all."""

    calls: int = 200
    has_two_nodes: bool = True
    """Whether two nodes of different height may answer behind one URL."""
    has_forks: bool = False
    """Whether blocks are replaced every few seconds, and most of what was in them is lost."""


@dataclass(slots=True, eq=False)
class Task:
    """Steps that are under way."""

    steps: Generator[Any, Any, Any]
    process: Process
    is_call: bool
    number: int
    token: int = 0
    is_done: bool = False
    nonces: set[int] = field(default_factory=set)
    """Those that left for the first time with this call."""
    vouchers: int = 0
    """How many left with it."""


_STEPS_A_COLLECTION = 10_000


class World:
    """One seed's run."""

    def __init__(self, seed: int, folder: Path, stage: Stage, rules: Rules) -> None:
        gc.collect()  # what another world left behind ends in that one
        gc.freeze()  # what is left is of the modules; looking at it again and again would take longer than the steps
        self.seed = seed
        self.rules = rules
        self.rng = rng = random.Random(seed)
        self.step = 0
        self.calls = 0
        self.counted: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=60)
        self._machine = stage.time.machine = Machine(START_S + rng.randrange(10_000))
        self._chain = Chain(self._machine.true_s)
        self._nodes = Nodes(self._chain, NETWORK, SIGNER.address, rng)
        self._ready: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = self._begun = 0
        self._path = folder / "ledger.sqlite"
        self._stage = stage
        stage.time.advance = self._advance
        stage.in_thread = self._in_thread
        stage.ask_node = self._nodes.answer
        calls._ids.draw = rng.getrandbits  # type: ignore[method-assign]
        self._policy = self._drawn_policy()
        self._auditor = Auditor(
            self._path, chain=self._chain, network=NETWORK, payer=SIGNER.address, policy=self._policy
        )
        self._gateways = {f"https://gateway{n}.simulated": self._drawn_gateway(n) for n in range(rng.randint(1, 3))}
        self._lines = self._chance(0.7) * rng.choice((0.01, 0.05, 0.2))
        self._timeout_s = rng.choice((30.0, 120.0))
        self._never_left = self._chance(0.5) * rng.choice((0.02, 0.1))
        self._tasks: list[Task] = []
        self._processes: list[Process] = []
        self._running: Process | None = None
        self._is_over = False
        self._schedule_weather()
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._begin_process()

    # -- the run

    def run(self) -> None:
        """Makes all steps. Raises Broken, with the seed and the step."""
        try:
            while self.calls < self.rules.calls or any(task.is_call for task in self._tasks):
                self._make_step()
            self._come_to_an_end()
        except Broken as exc:
            exc.add_note(f"seed {self.seed}, step {self.step} (call {self.calls}), {self._path}")
            exc.add_note("the last steps:\n" + "\n".join(self.trace))
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of the ledger's file."""
        self._auditor.close()
        for process in self._processes:
            self._kill(process, performing=0)

    def _make_step(self) -> None:
        self.step += 1
        if self.step % _STEPS_A_COLLECTION == 0:
            gc.collect()
        if self._ready:
            index = self.rng.randrange(len(self._ready))
            self._ready[index], self._ready[-1] = self._ready[-1], self._ready[index]
            work, arguments = self._ready.pop()
            self._advance(self.rng.random() * 0.1)
        else:
            due_s, _, work, arguments = heapq.heappop(self._timers)
            self._advance(max(0.0, due_s - self._machine.true_s))
        while self._timers and self._timers[0][0] <= self._machine.true_s:
            _, _, due, its_arguments = heapq.heappop(self._timers)
            self._ready.append((due, its_arguments))
        work(*arguments)

    def _advance(self, seconds: float) -> None:
        self._machine.advance(seconds)
        self._chain.now_s = self._machine.true_s

    def _soon(self, work: Callable[..., None], *arguments: Any) -> None:
        self._ready.append((work, arguments))

    def _later(self, delay_s: float, work: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._timers, (self._machine.true_s + delay_s, self._order, work, arguments))

    def _chance(self, share: float) -> bool:
        return self.rng.random() < share

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.step} {self._machine.true_s - START_S:.1f}s {text}")

    # -- what a seed draws

    def _drawn_policy(self) -> SpendPolicy:
        per_day = self.rng.choice((OPG // 2, 2 * OPG, 20 * OPG, 50 * OPG, 200 * OPG))
        return SpendPolicy(
            max_per_day=per_day,
            max_price_increase_percent=self.rng.choice((50, 100, 100)),
            max_deposit=self.rng.choice((OPG // 20, OPG // 2, 2 * OPG)),
            max_channels=self.rng.choice((1, 2, 4)),
        )

    def _drawn_gateway(self, number: int) -> Gateway:
        rng = self.rng
        scheme, method = rng.choice(_SCHEMES)
        is_honest = rng.random() < 0.3

        def often(share: float, *chances: float) -> float:
            return rng.choice(chances) if not is_honest and rng.random() < share else 0.0

        character = Character(
            denies=often(0.6, 0.05, 0.2, 0.5),
            fails=often(0.5, 0.05, 0.2),
            asks_anew=often(0.7, 0.3, 1.0),
            settles_denied=often(0.6, 0.2, 1.0),
            overcharges=often(0.3, 0.3, 1.0),
            inflates=often(0.3, 0.2, 1.0),
            forgets=often(0.4, 0.02, 0.1),
            vanishes=often(0.2, 0.02),
            lies_about_charges=often(0.3, 0.05, 0.3),
            forges_corrections=often(0.3, 0.05, 0.3),
            is_slow_to_free=often(0.4, 0.1, 0.5),
            is_mute=often(0.3, 0.1, 0.5),
            date_off_s=often(0.3, 40.0),
        )
        return Gateway(
            f"https://gateway{number}.simulated",
            chain=self._chain,
            network=NETWORK,
            terms=Terms(
                scheme=scheme,
                method=method,
                amount_atomic=rng.choice(
                    (OPG // 50, OPG // 10, OPG // 4) if scheme == "upto" else (OPG // 500, OPG // 100)
                )
                + rng.randrange(10**6),
                timeout_s=rng.choice((10, 30, 120, 300, 300, 600)),
            ),
            payee=PAYEE,
            facilitator=FACILITATOR,
            character=character,
            has_sessions=rng.random() < 0.8,
            sends_date=rng.random() < 0.7,
            rng=rng,
            later=self._later,
            settled=self._auditor.mined,
        )

    def _schedule_weather(self) -> None:
        for share, mean_s, event in (
            (0.5, 600.0, self._crash),
            (1.0, 15.0, self._reorganise) if self.rules.has_forks else (0.5, 90.0, self._reorganise),
            (0.7, 120.0, self._change_nodes),
            (0.4, 900.0, self._set_clock),
            (0.3, 1500.0, self._sleep),
            (0.4, 400.0, self._restart_gateway),
            (0.4, 300.0, self._change_price),
            (0.5, 60.0, self._cancel),
            (0.8, 60.0, self._clear_disputes),
            (0.8, 150.0, self._reconcile),
        ):
            if self._chance(share):
                self._repeat(mean_s, event)

    def _repeat(self, mean_s: float, event: Callable[[], None]) -> None:
        def happen() -> None:
            if not self._is_over:
                event()
                self._repeat(mean_s, event)

        self._later(self.rng.expovariate(1 / mean_s), happen)

    # -- weather

    def _crash(self) -> None:
        if self._processes:
            process = self.rng.choice(self._processes)
            self._note("a process dies")
            self._kill(process, performing=self.rng.randint(0, process.ledger.waiting))
            self._later(self.rng.random() * 30, self._begin_process)

    def _reorganise(self) -> None:
        depth = self.rng.choice((1, 1, 2))
        self._note(f"{depth} blocks are replaced")
        self._chain.reorganise(depth, drops=[self._chance(0.7 if self.rules.has_forks else 0.3) for _ in range(4)])
        self._auditor.mined()

    def _change_nodes(self) -> None:
        rng = self.rng
        lag = rng.choice((0, 0, 1, 3, 20, 60))
        other = rng.choice((0, 1, 5, 40, 400)) if self.rules.has_two_nodes and rng.random() < 0.5 else None
        faults = rng.choice((0.0, 0.0, 0.1, 1.0))
        self._nodes.weather = Weather(lag, other, rng.random() < 0.2, faults)
        self._note(f"nodes: {self._nodes.weather}")

    def _set_clock(self) -> None:
        off_s = self.rng.choice((0.0, 0.0, -7200.0, 3600.0, 90_000.0, -40.0, 40.0, -120.0))
        self._note(f"the clock is set {off_s:+.0f} s off")
        self._machine.wall_off_s = off_s
        self._later(self.rng.random() * 200, self._put_clock_right)

    def _put_clock_right(self) -> None:
        self._machine.wall_off_s = 0.0

    def _sleep(self) -> None:
        self._note("the machine sleeps")
        self._machine.sleep(self.rng.choice((30.0, 400.0, 4000.0)))
        self._chain.now_s = self._machine.true_s

    def _restart_gateway(self) -> None:
        gateway = self.rng.choice(list(self._gateways.values()))
        self._note(f"{gateway.origin} restarts")
        gateway.restart(settles=self._chance(0.6))

    def _change_price(self) -> None:
        self.rng.choice(list(self._gateways.values())).change_price()

    def _cancel(self) -> None:
        under_way = [task for task in self._tasks if task.is_call and not task.is_done]
        if under_way:
            task = self.rng.choice(under_way)
            self._note("a call is cancelled")
            self._resume(task, task.token, None, asyncio.CancelledError())

    def _clear_disputes(self) -> None:
        for process in self._processes[:1]:
            origin = self.rng.choice(list(self._gateways))
            process.ledger.clear_disputes(network=NETWORK.caip2, origin=origin)

    def _reconcile(self) -> None:
        if self._processes:
            process = self.rng.choice(self._processes)
            self._begin(process, process.payments.reconciler._reconciling(SIGNER.address), is_call=False)

    # -- processes

    def _begin_process(self) -> None:
        ledger = SteppedLedger(self._path, woken=lambda: self._wake(process), committed=self._auditor.committed)
        process = Process(
            network=NETWORK,
            signer=SIGNER,
            policy=self._policy,
            ledger=ledger,
            origins=list(self._gateways),
            time=self._stage.time,
            timeout_s=self._timeout_s,
        )
        self._processes.append(process)
        if not self._is_over:
            for _ in range(self.rng.choice((1, 2, 4))):
                self._later(self.rng.random(), self._call, process)

    def _wake(self, process: Process) -> None:
        self._soon(self._step_ledger, process)

    def _step_ledger(self, process: Process) -> None:
        if not process.is_dead and process.ledger.waiting:
            process.ledger.step(self.rng.randint(1, process.ledger.waiting))
            if process.ledger.waiting:
                self._wake(process)

    def _kill(self, process: Process, *, performing: int) -> None:
        process.is_dead = True
        process.ledger.die(performing=performing)
        self._processes = [other for other in self._processes if other is not process]
        for task in [task for task in self._tasks if task.process is process]:
            self._forget(task)
            task.is_done = True
            with suppress(BaseException):
                task.steps.close()  # its ledger is dead: whatever it does now, nobody sees

    def _in_thread(self, work: Callable[[], Any], *, name: str) -> Future[Any]:
        process, future = self._running, Outcome()

        def make() -> None:
            if future.done() or process is None or process.is_dead:
                return
            before, self._running = self._running, process
            try:
                future.set_result(work())
            except Broken:
                raise
            except BaseException as exc:
                future.set_exception(exc)
            finally:
                self._running = before

        future.make = make
        self._note(name)
        self._soon(make)
        return future

    # -- calls

    def _call(self, process: Process) -> None:
        if process.is_dead or self.calls >= self.rules.calls:
            return
        self.calls += 1
        rng = self.rng
        client = process.clients[rng.choice(list(self._gateways)), rng.random() < 0.3]
        steps = self._streamed(client) if rng.random() < 0.2 else client._chat(BODY)
        self._begin(process, steps, is_call=True)

    def _streamed(self, client: Any) -> Steps[Any]:
        """A stream that is read to its end, dropped, or broken."""
        exchange, response = yield from client._open_stream(BODY)
        chunk = response.content
        if response.headers.get("content-type") == "application/json":
            chunk = b"data: " + chunk.replace(b'"message"', b'"delta"') + b"\n\ndata: [DONE]\n\n"
        match self.rng.randrange(6):
            case 0:
                exchange.end("abandoned")
            case 1:
                problem = exchange.fail(httpx.ReadError("reset"))
                raise problem
            case _:
                yield Sleep(self.rng.random() * 5)
                exchange.take_chunk(chunk)
                try:
                    return exchange.finish_stream()
                except BaseException as exc:
                    raise exchange.fail(exc) from exc
        return None

    def _begin(self, process: Process, steps: Generator[Any, Any, Any], *, is_call: bool) -> None:
        self._begun += 1
        task = Task(steps, process, is_call, self._begun)
        self._tasks.append(task)
        self._resume(task, 0, None, None)

    def _resume(self, task: Task, token: int, value: Any, problem: BaseException | None) -> None:
        if task.is_done or task.token != token or task.process.is_dead:
            return
        task.token += 1
        self._running = task.process
        self._stage.ident = task.number
        try:
            effect = task.steps.send(value) if problem is None else task.steps.throw(problem)
        except StopIteration:
            self._ended(task, None)
        except Broken:
            raise
        except BaseException as exc:
            self._ended(task, exc)
        else:
            self._perform(task, effect)
        finally:
            self._running = None

    def _perform(self, task: Task, effect: Any) -> None:
        token = task.token
        match effect:
            case Send(request):
                self._soon(self._arrive, task, token, request)
            case Read(response, take):
                self._soon(self._read, task, token, response, take)
            case Wait(future, timeout_s):
                future.add_done_callback(lambda _: self._soon(self._resume_with, task, token, future))
                if timeout_s is not None:
                    self._later(timeout_s, self._resume, task, token, None, TimeoutError())
            case Sleep(seconds):
                self._later(seconds, self._resume, task, token, None, None)

    def _resume_with(self, task: Task, token: int, future: Future[Any]) -> None:
        if future.cancelled():  # by who waited for it, and has gone on
            return
        problem = future.exception()
        self._resume(task, token, None if problem else future.result(), problem)

    def _read(self, task: Task, token: int, response: httpx.Response, take: Callable[[bytes], None] | None) -> None:
        problem: BaseException | None = None
        try:
            if take is not None:
                content = response.content
                if self._lines and self._chance(self._lines / 2):
                    take(content[: len(content) // 2])
                    problem = httpx.ReadError("reset")
                else:
                    take(content)
        except Exception as exc:
            problem = exc
        self._resume(task, token, None, problem)

    def _arrive(self, task: Task, token: int, request: httpx.Request) -> None:
        is_lost = task.token != token or task.is_done
        if request.url.host == "node.simulated":
            if not is_lost:
                try:
                    answer = self._nodes.answer(request)
                except httpx.HTTPError as exc:
                    self._resume(task, token, None, exc)
                else:
                    self._resume(task, token, answer, None)
            return
        if is_lost and self._chance(0.5):
            return  # who sent it is gone, and so are the bytes
        if self._chance(self._never_left):
            problem = self.rng.choice((httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
            self._resume(task, token, None, problem("never left"))
            return
        gateway = self._gateways[f"https://{request.url.host}"]
        self._leaves(task, request, gateway.origin)
        is_silent = self._chance(self._lines)
        if is_silent and self._chance(0.2):
            self._resume(task, token, None, httpx.WriteError("broke"))  # it left, and never arrived
            return
        answer = gateway.answer(request)
        self._note(f"{gateway.origin} answers {answer.status_code}")
        if is_silent:
            problem = self.rng.choice((httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError))
            delay_s = self._timeout_s if problem is httpx.ReadTimeout else self.rng.random()
            self._later(delay_s, self._resume, task, token, None, problem("lost"))
        elif self._chance(0.1):
            self._later(self.rng.random() * (self._timeout_s - 1), self._resume, task, token, answer, None)
        elif self._chance(0.3):
            self._soon(self._resume, task, token, answer, None)
        else:
            self._resume(task, token, answer, None)

    def _leaves(self, task: Task, request: httpx.Request, origin: str) -> None:
        if SIGNATURE_HEADER not in request.headers:
            return
        signature = signature_in(request)
        assert signature is not None
        self.counted["signatures sent"] += 1
        if isinstance(signature, ChannelPayment):
            self.counted[f"{signature.kind}s sent"] += 1
            task.vouchers += 1
            self._note(f"a {signature.kind} up to {signature.voucher.max_atomic} goes to {origin}")
            self._auditor.voucher_left(signature, origin=origin, amount=allowed_in(request))
            return
        self._note(
            f"a signature for {signature.amount_atomic} until {signature.deadline - START_S:.0f}s goes to {origin}"
        )
        if signature.nonce not in self._auditor.out:
            task.nonces.add(signature.nonce)
        self._auditor.left(signature, origin=origin, call=task.number)

    def _forget(self, task: Task) -> None:
        self._tasks = [other for other in self._tasks if other is not task]

    def _ended(self, task: Task, problem: BaseException | None) -> None:
        task.is_done = True
        self._forget(task)
        kind = "ok" if problem is None else type(problem).__name__
        self.counted[kind] += 1
        if not task.is_call:
            return
        self._note(f"a call ends: {kind}")
        if not isinstance(problem, OpenGradientError | asyncio.CancelledError | None):
            raise Broken("errors are ours", f"{kind}: {problem}") from problem
        if isinstance(problem, OpenGradientError) and problem.money is MoneyOutcome.NOT_PAID:
            self._auditor.said_not_paid(task.nonces, f"{kind}: {problem}", vouchers=task.vouchers)
        if self.calls < self.rules.calls:
            is_refused = isinstance(problem, OpenGradientError) and problem.money is MoneyOutcome.NOT_PAID
            pause_s = self.rng.random() * 150 if is_refused else self._pause_s()
            self._later(pause_s, self._call, task.process)

    def _pause_s(self) -> float:
        kind = self.rng.random()
        if kind < 0.75:
            return self.rng.random() * 2
        return self.rng.random() * (40 if kind < 0.95 else 400)

    # -- the end

    def _withdraw(self, kind: str) -> None:
        """The owner takes back what is in channels, as `channels withdraw` does."""
        for channel_id in self._auditor.channels.out:
            left = self._chain.channel(channel_id).left_atomic
            if left > 0:
                self._chain.give_back(channel_id, kind, left)

    def _come_to_an_end(self) -> None:
        """Nothing new begins; all that is open ends; then ledger and chain must be equal."""
        self._is_over = True
        for process in list(self._processes):
            process.ledger.step(process.ledger.waiting)
            self._kill(process, performing=0)
        self._machine.wall_off_s = 0.0
        for kind in ("withdrawal begins", "withdrawal ends"):
            self._later(1500.0, self._withdraw, kind)
        for pause_s in (_FINAL_S, 60.0, _A_DAY_S):
            self._nodes.weather = Weather()
            self._chain.abandoned = None
            until = self._machine.true_s + pause_s
            self._later(pause_s, lambda: None)
            while self._ready or (self._timers and self._timers[0][0] <= until):
                self._make_step()
            self._begin_process()
            process = self._processes[-1]
            self._running = process
            process.payments.reconciler.reconcile(payer=SIGNER.address)
            self._kill(process, performing=0)
        self.step += 1
        charged = sum((Counter(gateway.desk.charged) for gateway in self._gateways.values()), Counter[str]())
        honest = [gateway.origin for gateway in self._gateways.values() if gateway.character == Character()]
        self._auditor.equal()
        self._auditor.channels.equal(charged, honest=honest)
