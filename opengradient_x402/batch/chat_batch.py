"""`ChatBatch`: a table of prompts in, the same table with answers, costs and receipts out; many calls at once.

One object answers lists, pandas DataFrames and the batches of Ray Data. It reads the key where it works, from the
environment: nothing in it that could be pickled holds one. All workers spend from one wallet within one budget when
they share a ledger (OG_LEDGER_URL).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from opengradient_x402.batch.answers import Answers
from opengradient_x402.batch.keyed import KeyedCalls
from opengradient_x402.batch.rows import COLUMNS, Outcome, Reader, Table
from opengradient_x402.batch.work import CallKey, Shared, Work
from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.gateway.clients import Connections, Route
from opengradient_x402.loop_thread import LoopThread
from opengradient_x402.networks import Network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settings import Settings
from opengradient_x402.settlement_mode import SettlementMode

_SETTLING_S: Final = 60.0
"""How long after a session's idle time its settlement is waited for, in seconds."""


class ChatBatch:
    """Answers the rows of tables; called with a table, it returns the table with more columns.

    A row has a column `messages` (or `prompt`, and perhaps `system`), and may have columns of request members
    (`model`, `max_tokens`, `temperature`, …), which replace those given here as `model` and `parameters`; `columns`
    says which column has another name. The new columns are those of `Outcome`, each behind `prefix`. A row that fails
    does not stop the others: its `error` says why, and `money` what was paid.

    The wallet is that of the environment (OG_PRIVATE_KEY, OG_PRIVATE_KEY_FILE or OG_KEYSTORE) where the object works,
    or that of `payments`, which cannot travel. `network`, `base_url`, `ledger` and `settlement_mode` are read from the
    environment too when they are not given. At most `max_in_flight` calls are made at once by one object.

    With `answers`, a folder that all workers see, and `call_key`, the column (or function of a row) that tells rows
    apart, a job that is started again pays for no row twice. A row that was paid and whose answer was lost is reported
    as AnswerLost; `pay_again` calls it for a new payment. `wait_settled_s` is how long the chain is waited for to show
    whether a row was paid (by default a minute longer than sessions last unused).

    Raises ConfigurationError for what cannot be used, LedgerUnavailable for a folder that cannot be written.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        columns: Mapping[str, str] | None = None,
        prefix: str = "",
        network: str | Path | Network | None = None,
        base_url: str | None = None,
        policy: SpendPolicy | None = None,
        ledger: str | Path | None = None,
        payments: Payments | None = None,
        private_key: None = None,
        settlement_mode: SettlementMode | str | None = None,
        verify_tee: str = "off",
        timeout_s: float = 120.0,
        max_retries: int = 2,
        max_in_flight: int = 32,
        call_key: CallKey | None = None,
        answers: str | Path | None = None,
        pay_again: bool = False,
        wait_settled_s: float | None = None,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name != "self"}
        _refuse_secrets((parameters or {}).get("private_key", private_key), ledger)
        if max_in_flight < 1:
            raise ConfigurationError(f"max_in_flight={max_in_flight} makes no call possible. Nothing was paid.")
        if (call_key is None) != (answers is None):
            raise ConfigurationError(
                "`call_key` and `answers` belong together: the key says which row an answer is of, the folder keeps "
                "it. Nothing was paid. Give both, or neither."
            )
        settings = Settings.load()
        wallet: dict[str, Any] = {"payments": payments}
        if payments is None:
            wallet = {
                "private_key": settings.require_key(),
                "network": network if network is not None else settings.network,
                "rpc_url": None if isinstance(network, Network) else settings.rpc_url,
                "policy": policy,
                "ledger": ledger if ledger is not None else settings.ledger_url,
            }
        self._route = Route(
            base_url=base_url or settings.gateway_url, max_retries=max_retries, verify_tee=verify_tee, **wallet
        )
        self._reader = Reader(defaults={**(parameters or {}), "model": model}, columns=columns)
        self._prefix = prefix
        self._mode = SettlementMode.parse(settings.settlement_mode if settlement_mode is None else settlement_mode)
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._call_key = call_key
        self._answers = None if answers is None else Answers(answers)
        self._pay_again = pay_again
        self._wait_settled_s = wait_settled_s
        self._connections = Connections()
        self._shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Shared] = weakref.WeakKeyDictionary()
        self._thread = LoopThread("opengradient-batch")

    def __call__(self, batch: Any) -> Any:
        """The table with the answers: a list of dicts (or of prompts), a DataFrame, a dict of columns, a pyarrow Table.

        Several threads may call it, also where an event loop runs.
        """
        table = self._table(batch)
        return table.with_outcomes(self._thread.run(self._outcomes(table.rows)), prefix=self._prefix)

    async def answered(self, batch: Any) -> Any:
        """As a call of the object, for coroutines."""
        table = self._table(batch)
        outcomes = await asyncio.wrap_future(self._thread.begin(self._outcomes(table.rows)))
        return table.with_outcomes(outcomes, prefix=self._prefix)

    def close(self) -> None:
        """Ends the thread, and the connections that nobody else uses; the next call begins them again."""
        self._thread.close()
        self._connections.close()
        if self._answers is not None:
            self._answers.close()

    def __enter__(self) -> ChatBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], ChatBatch], tuple[dict[str, Any]]]:
        if self._given["payments"] is not None:
            raise TypeError(
                "A ChatBatch with `payments` cannot be pickled: they hold the key of the wallet. Leave them out, and "
                "set OG_PRIVATE_KEY (or OG_PRIVATE_KEY_FILE) where it works."
            )
        return _made, (self._given,)

    def _table(self, batch: Any) -> Table:
        """The table, with the columns that are needed. Raises ConfigurationError."""
        table = Table(batch)
        if not table.rows:
            return table
        names = table.columns
        self._reader.check(names)
        if taken := sorted(names & {self._prefix + name for name in COLUMNS}):
            raise ConfigurationError(
                f"The table has a column {taken[0]!r} already, which the answers would replace. Nothing was paid. "
                'Rename it, or give the new columns a prefix: `prefix="og_"`.'
            )
        if isinstance(self._call_key, str) and self._call_key not in names:
            raise ConfigurationError(
                f"The table has no column {self._call_key!r}, which `call_key` names. Nothing was paid."
            )
        return table

    async def _outcomes(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        client = await self._connections.async_client(self._route)
        loop = asyncio.get_running_loop()
        shared = self._shared.get(loop) or self._shared.setdefault(loop, Shared(self._max_in_flight))
        work = Work(
            client=client,
            reader=self._reader,
            settlement_mode=self._mode,
            timeout_s=self._timeout_s,
            shared=shared,
            call_key=self._call_key,
            answers=self._answers,
            calls=None if self._answers is None else self._keyed_calls(client.payments, self._answers),
        )
        return await work.outcomes(rows)

    def _keyed_calls(self, payments: Payments, answers: Answers) -> KeyedCalls:
        wait_s = self._wait_settled_s
        return KeyedCalls(
            payments,
            job=answers.job,
            pay_again=self._pay_again,
            wait_s=payments.network.session_idle_s + _SETTLING_S if wait_s is None else wait_s,
        )


def _made(given: dict[str, Any]) -> ChatBatch:
    return ChatBatch(**given)


def _refuse_secrets(private_key: object, ledger: object) -> None:
    """Raises for what must not travel with a job, whose arguments are pickled, stored and shown in dashboards."""
    if private_key is not None:
        raise InvalidPrivateKey(
            "A private key was given to ChatBatch, whose arguments travel to workers in the clear. Nothing was paid. "
            "Leave it out, and set OG_PRIVATE_KEY, OG_PRIVATE_KEY_FILE or OG_KEYSTORE where the workers run. In this "
            "process alone: `payments=Payments.open(private_key=…)`. If it was sent to a cluster, replace the key."
        )
    user = str(ledger).partition("://")[2].rpartition("@")[0] if ledger is not None else ""
    if ":" in user:
        raise ConfigurationError(
            "The ledger's URL holds a password, and the arguments of ChatBatch travel to workers in the clear. Nothing "
            "was paid. Set OG_LEDGER_URL where the workers run, or leave the password to PGPASSFILE."
        )
