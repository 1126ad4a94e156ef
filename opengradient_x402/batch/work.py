"""The rows of one table on their way: many calls at once, answers onto the disk, and each row's outcome.

Rows with a key are looked up on disk first. Those that an earlier process called come last, since they may have to
wait for the chain.
"""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Final

from opengradient_x402.batch.answers import Answers, Kept
from opengradient_x402.batch.keyed import KeyedCalls, NextCall
from opengradient_x402.batch.rows import Asked, Outcome, Reader, plain
from opengradient_x402.errors import (
    AnswerLost,
    CallKnown,
    ConfigurationError,
    LedgerUnavailable,
    OpenGradientError,
    PaidButFailed,
    PaymentOutcomeUnknown,
)
from opengradient_x402.gateway.client import AsyncGatewayClient
from opengradient_x402.settlement_mode import SettlementMode

CallKey = str | Callable[[Mapping[str, Any]], str | int]
_MOST_ROUNDS: Final = 8
_LOOK_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)
_Answering = Callable[["_Row"], Awaitable[Outcome]]


class Shared:
    """What all tables of one `ChatBatch` share on one event loop."""

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.room = asyncio.Semaphore(max_in_flight)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def lock(self, key: str) -> asyncio.Lock:
        """Taken while a row with this key is under way: another one with the same key then finds its answer."""
        return self._locks.get(key) or self._locks.setdefault(key, asyncio.Lock())


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    asked: Asked
    key: str = ""

    @property
    def digest(self) -> str:
        """What tells its request from others."""
        content = json.dumps(self.asked.body, sort_keys=True, default=repr)
        return sha256(content.encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass(slots=True, kw_only=True)
class Work:
    """Rows in, outcomes out. `answers` and `calls` are there when rows have keys."""

    client: AsyncGatewayClient
    reader: Reader
    settlement_mode: SettlementMode
    timeout_s: float
    shared: Shared
    call_key: CallKey | None
    answers: Answers | None
    calls: KeyedCalls | None
    _outcomes: list[Outcome] = field(default_factory=list)
    _problem: LedgerUnavailable | None = None
    """Why no answer can be kept any more: nothing is paid then."""

    async def outcomes(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """What became of each row, in their order."""
        self._outcomes = [Outcome()] * len(rows)
        read = [row for number, said in enumerate(rows) if (row := self._read(number, said)) is not None]
        if self.answers is None or self.calls is None:
            await self._each(read, self._called, at_once=self.shared.max_in_flight)
            return self._outcomes
        store, calls = self.answers, self.calls
        await asyncio.to_thread(store.look)
        left = [row for row in read if not self._is_done(row, self._kept(row, store))]
        known = await calls.known({row.key for row in left})
        try:
            new = [row for row in left if row.key not in known]
            await self._each(new, lambda row: self._keyed(row, store, calls), at_once=self.shared.max_in_flight)
            # These may wait for the chain, all at the same time.
            seen = [row for row in left if row.key in known]
            await self._each(seen, lambda row: self._keyed(row, store, calls, is_known=True), at_once=len(seen))
        finally:
            await asyncio.to_thread(store.flush)
        return self._outcomes

    def _read(self, number: int, said: Mapping[str, Any]) -> _Row | None:
        """The row, if it can be called."""
        try:
            asked = self.reader.read(said)
            return _Row(number, asked) if self.call_key is None else _Row(number, asked, _key_of(said, self.call_key))
        except ConfigurationError as exc:
            self._outcomes[number] = Outcome.of_error(exc)
            return None

    async def _each(self, rows: Sequence[_Row], answering: _Answering, *, at_once: int) -> None:
        left = iter(rows)

        async def some() -> None:
            for row in left:
                try:
                    self._outcomes[row.number] = await answering(row)
                except OpenGradientError as exc:
                    self._outcomes[row.number] = Outcome.of_error(exc)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(rows))):
                group.create_task(some())

    async def _called(self, row: _Row, **call: Any) -> Outcome:
        """One call, when there is room for it."""
        async with self.shared.room:
            if self._problem is not None:
                raise self._problem
            mode = row.asked.settlement_mode or self.settlement_mode
            completion = await self.client.chat(row.asked.body, settlement_mode=mode, timeout_s=self.timeout_s, **call)
        return Outcome.of_answer(completion)

    # -- rows with a key

    def _is_done(self, row: _Row, outcome: Outcome | None) -> bool:
        if outcome is not None:
            self._outcomes[row.number] = outcome
        return outcome is not None

    def _kept(self, row: _Row, store: Answers) -> Outcome | None:
        """The outcome of a row whose answer is on disk; an error when that answers another request."""
        kept = store.find(row.key)
        if kept is None:
            return None
        if kept.asked != row.digest:
            return Outcome.of_error(
                ConfigurationError(
                    f"The key {row.key!r} has an answer on disk, which is to another request. Nothing was paid. Give "
                    "rows that differ keys that differ, or a changed table (or model, or parameters) another folder."
                )
            )
        return Outcome.kept(kept.columns)

    async def _keyed(self, row: _Row, store: Answers, calls: KeyedCalls, *, is_known: bool = False) -> Outcome:
        async with self.shared.lock(row.key):
            if (kept := self._kept(row, store)) is not None:  # of the same key, a moment ago
                return kept
            try:
                outcome = await self._paid_once(row, store, calls, is_known=is_known)
            except (AnswerLost, PaymentOutcomeUnknown):
                await asyncio.to_thread(store.look)  # another worker may have had it under way
                if (kept := self._kept(row, store)) is not None:
                    return kept
                raise
            if not outcome.reused:
                self._keep(row, outcome, store)
            return outcome

    async def _paid_once(self, row: _Row, store: Answers, calls: KeyedCalls, *, is_known: bool) -> Outcome:
        refused: set[NextCall] = set()
        problem: OpenGradientError | None = None
        for _ in range(_MOST_ROUNDS):
            step = NextCall(call_id=calls.call_id(row.key))
            if is_known:
                found = await self._next(row, store, calls, refused=refused)
                if isinstance(found, Outcome):
                    return found
                step = found
            try:
                return await self._called(
                    row, call_id=step.call_id, earlier=step.earlier, only_given_again=step.only_given_again
                )
            except PaidButFailed:
                raise
            except OpenGradientError as exc:
                if step.earlier is not None:
                    refused.add(step)  # whether the payment of before was taken, only the chain can say
                elif not isinstance(exc, CallKnown):
                    raise
                is_known, problem = True, exc
        raise problem or ValueError("no round was made")

    async def _next(
        self, row: _Row, store: Answers, calls: KeyedCalls, *, refused: set[NextCall]
    ) -> NextCall | Outcome:
        """The row's next call; or its answer, as soon as another worker, which had it under way, has written it."""
        finding = asyncio.ensure_future(calls.next(row.key, refused=refused))
        try:
            while True:
                done, _ = await asyncio.wait([finding], timeout=_LOOK_EVERY_S)
                await asyncio.to_thread(store.look)
                if (kept := self._kept(row, store)) is not None:
                    return kept
                if done:
                    return finding.result()
        finally:
            finding.cancel()

    def _keep(self, row: _Row, outcome: Outcome, store: Answers) -> None:
        columns = {name: value for name, value in asdict(outcome).items() if value is not None}
        try:
            store.keep(row.key, Kept(asked=row.digest, columns=columns))
        except LedgerUnavailable as exc:  # it is paid: the caller still gets it
            _log.error("The answer of row %r is not on disk: %s", row.key, exc)
            self._problem = exc


def _key_of(row: Mapping[str, Any], call_key: CallKey) -> str:
    value = plain(row.get(call_key)) if isinstance(call_key, str) else call_key(row)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps is one of floats
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ConfigurationError(
            f"The row has no key ({value!r:.80}). Nothing was paid. A key is text or a whole number, another one for "
            "each row, and the same one whenever the job is started."
        )
    return str(value)
