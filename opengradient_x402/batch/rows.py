"""Tables as users have them, the requests in their rows, and the columns that come out.

A table is a list of dicts or of prompts, a pandas DataFrame, a dict of columns (Ray's own form) or a pyarrow Table; the
same form comes back. pandas and pyarrow are not imported here: they are there when somebody passes their tables.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, cast

from opengradient_x402.completions import Completion
from opengradient_x402.errors import ConfigurationError, MoneyOutcome, OpenGradientError
from opengradient_x402.gateway.request import with_wire_roles
from opengradient_x402.ledger.receipts import SettlementReceipt, cost_of
from opengradient_x402.money import amount_in, format_amount
from opengradient_x402.parameters import CHAT_MEMBERS, misspelt
from opengradient_x402.settlement_mode import SettlementMode

PARAMETERS: Final = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
    "frequency_penalty",
    "presence_penalty",
    "web_search",
)
"""Members of a request that a row may have a column for."""
_QUESTION: Final = ("messages", "prompt", "system")
_PER_CALL: Final = ("settlement_mode",)
_WHOLE: Final = ("max_tokens", "seed")
_JSON: Final = ("messages", "tools", "tool_choice", "response_format", "stop")
"""Members that may be JSON text, as files of tables have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one row: the columns that come out.

    Amounts in atomic units are decimal text, since some do not fit into 64 bits.
    """

    answer: str | None = None
    finish_reason: str | None = None
    tool_calls: str | None = None
    """JSON, as the wire has them."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_atomic: str | None = None
    """What the chain shows, else what the gateway claims, else an estimate by published prices; None: not known."""
    cost: str | None = None
    """The same in whole tokens."""
    cost_symbol: str | None = None
    call_id: str | None = None
    """The receipt's id: `opengradient-x402 receipts show` prints it."""
    receipt_status: str | None = None
    money: str = MoneyOutcome.NOT_PAID.value
    """`paid`, `not_paid`, or `unknown` until the chain shows it."""
    error: str | None = None
    error_type: str | None = None
    reused: bool = False
    """Whether the answer was on disk already, and nothing was paid now."""

    @classmethod
    def of_answer(cls, completion: Completion) -> Outcome:
        """The outcome of a row that was answered."""
        receipt, usage = completion.receipt, completion.usage
        return cls(
            answer=completion.content,
            finish_reason=completion.finish_reason,
            tool_calls=_tool_calls(completion),
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            money=(MoneyOutcome.NOT_PAID if receipt is None else MoneyOutcome.PAID).value,
            **_paid(receipt),
        )

    @classmethod
    def kept(cls, columns: Mapping[str, Any]) -> Outcome:
        """The outcome of a row whose answer was on disk already."""
        return cls(**{name: value for name, value in columns.items() if name in COLUMNS} | {"reused": True})

    @classmethod
    def of_error(cls, error: OpenGradientError) -> Outcome:
        """The outcome of a row that failed."""
        receipt = error.receipt
        return cls(
            money=error.money.value,
            error=error.message,
            error_type=type(error).__name__,
            **{"call_id": error.call_id, **_paid(receipt)},
        )


def _tool_calls(completion: Completion) -> str | None:
    if not completion.tool_calls:
        return None
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in completion.tool_calls
    ]
    return json.dumps(calls)


def _paid(receipt: SettlementReceipt | None) -> dict[str, Any]:
    """What the receipt says of the money; without one nothing was paid."""
    if receipt is None:
        return {"cost_atomic": "0", "cost": "0"}
    cost = cost_of(receipt)
    cost = receipt.estimated_cost_atomic if cost is None else cost
    decimals = receipt.asset_decimals
    return {
        "cost_atomic": None if cost is None else str(cost),
        "cost": None if cost is None or decimals is None else format_amount(cost, decimals=decimals),
        "cost_symbol": receipt.asset_symbol,
        "call_id": receipt.call_id,
        "receipt_status": receipt.status.value,
    }


def shown_cost(receipt: SettlementReceipt) -> str:
    """What a call cost, for people."""
    cost = cost_of(receipt)
    return f"up to {amount_in(receipt, receipt.authorized_atomic)}" if cost is None else amount_in(receipt, cost)


COLUMNS: Final = tuple(field.name for field in fields(Outcome))
_NUMBERS: Final = ("prompt_tokens", "completion_tokens")
_FLAGS: Final = ("reused",)


# -- what a row asks


@dataclass(frozen=True, slots=True)
class Asked:
    """What one row asks: the body of its request, and in which settlement mode."""

    body: dict[str, Any]
    settlement_mode: SettlementMode | None


class Reader:
    """Reads requests out of rows. `columns` names the column of a member whose column has another name."""

    def __init__(self, *, defaults: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> None:
        known = (*_QUESTION, *PARAMETERS, *_PER_CALL)
        columns = dict(columns or {})
        if unknown := sorted(set(columns) - set(known)):
            raise ConfigurationError(
                f"`columns` names {unknown[0]!r}, which is no part of a request. Nothing was paid. There are "
                f"{', '.join(known)}."
            )
        _check_defaults(defaults, known=known)
        self._defaults = {name: value for name, value in defaults.items() if value is not None}
        self._column = {name: columns.get(name, name) for name in known}
        self._is_named = frozenset(columns)

    def check(self, names: Iterable[str]) -> None:
        """Raises ConfigurationError when a table has no column with questions, or lacks one that was named."""
        names = set(names)
        for member in sorted(self._is_named):
            if self._column[member] not in names:
                raise ConfigurationError(
                    f"The table has no column {self._column[member]!r}, which `columns` names for {member!r}. Nothing "
                    f"was paid. It has {_listed(names)}."
                )
        if not names & {self._column["messages"], self._column["prompt"]}:
            raise ConfigurationError(
                f"The table has neither a column {self._column['messages']!r} nor {self._column['prompt']!r}. Nothing "
                f"was paid. It has {_listed(names)}: rename one, or say which it is: "
                '`columns={"prompt": "question"}`.'
            )

    def read(self, row: Mapping[str, Any]) -> Asked:
        """The request of a row. Raises ConfigurationError."""
        values = ((name, plain(row.get(column))) for name, column in self._column.items())
        said: dict[str, Any] = {name: self._decoded(name, value) for name, value in values if value is not None}
        mode = said.pop("settlement_mode", None)
        messages = self._messages(said)
        given: dict[str, Any] = {name: said[name] for name in PARAMETERS if name in said}
        body = {**self._defaults, **given, "messages": messages}
        if not body.get("model"):
            raise ConfigurationError(
                "The row names no model. Nothing was paid. Fill its column `model`, or give `model` to ChatBatch."
            )
        return Asked(body, None if mode is None else SettlementMode.parse(mode))

    def _messages(self, said: dict[str, Any]) -> list[Any]:
        messages, prompt, system = (said.pop(name, None) for name in _QUESTION)
        if messages is None:
            if not isinstance(prompt, str) or not prompt.strip():
                what = "no prompt" if prompt is None else f"no text as its prompt ({prompt!r:.80})"
                raise ConfigurationError(
                    f"The row has {what}. Nothing was paid. Fill its column "
                    f"{self._column['prompt']!r} or {self._column['messages']!r}, or leave the row out."
                )
            messages = [{"role": "user", "content": prompt}]
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise ConfigurationError(
                f"The row's messages are no list of messages ({messages!r:.80}). Nothing was paid. Give each message "
                'as {"role": …, "content": …}, or the whole list as JSON text.'
            )
        if system is not None:
            if not isinstance(system, str):
                raise ConfigurationError(
                    f"The row has no text as its system message ({system!r:.80}). Nothing was paid. Correct its column "
                    f"{self._column['system']!r}, or leave it empty."
                )
            messages = [{"role": "system", "content": system}, *messages]
        return with_wire_roles(messages)

    def _decoded(self, name: str, value: Any) -> Any:
        if name in _JSON and isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except ValueError as exc:
                raise ConfigurationError(
                    f"The column {self._column[name]!r} has text that begins like JSON, but is none ({exc}). Nothing "
                    "was paid. Correct the row."
                ) from exc
        if name in _WHOLE and isinstance(value, float) and value.is_integer():
            return int(value)  # a column of whole numbers with gaps is one of floats
        return value


def _check_defaults(given: Mapping[str, Any], *, known: Iterable[str]) -> None:
    """Raises ConfigurationError for names that are not members of a request, such as typing errors."""
    members = CHAT_MEMBERS.union(PARAMETERS)
    for name in given:
        if name in known and name not in members:
            raise ConfigurationError(
                f"`parameters` has {name!r}, which belongs into a column of the table, or is an option of ChatBatch "
                "itself. Nothing was paid. Move it there."
            )
        if name not in members and (meant := misspelt(name, members)) is not None:
            raise ConfigurationError(f"`parameters` has {name!r}. Nothing was paid. Did you mean {meant!r}?")


def plain(value: Any) -> Any:
    """The value as JSON has it: arrays and their numbers as Python's, and None for the empty values of tables.

    Members that are None are left out of dicts: a table fills them in where one row has more than another.
    """
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items() if one is not None}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(map(str, names)))) or "no columns"


# -- tables


class Table:
    """A table of any form: its rows, and itself with the outcomes beside them."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.rows: list[Mapping[str, Any]] = _rows_of(batch)

    @property
    def columns(self) -> set[str]:
        """The names of all columns."""
        if isinstance(self._batch, Sequence):
            return {str(name) for row in self.rows for name in row}
        if isinstance(self._batch, Mapping):
            return set(map(str, self._batch))
        names = getattr(self._batch, "column_names", None)
        return set(map(str, self._batch.columns if names is None else names))

    def with_outcomes(self, outcomes: Sequence[Outcome], *, prefix: str) -> Any:
        """The table in its own form, with the columns of the outcomes."""
        values = {name: [getattr(outcome, name) for outcome in outcomes] for name in COLUMNS}
        named = {prefix + name: column for name, column in values.items()}
        if isinstance(self._batch, Sequence):
            pairs = zip(self.rows, outcomes, strict=True)
            return [{**row, **{prefix + name: getattr(one, name) for name in COLUMNS}} for row, one in pairs]
        if isinstance(self._batch, Mapping):
            import numpy as np

            arrays = {name: _array(np, name.removeprefix(prefix), column) for name, column in named.items()}
            return {**self._batch, **arrays}
        if hasattr(self._batch, "to_pylist"):
            return _onto_arrow(self._batch, named, prefix=prefix)
        return _onto_frame(self._batch, named, prefix=prefix)


def _rows_of(batch: Any) -> list[Mapping[str, Any]]:
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        rows = [{"prompt": row} if isinstance(row, str) else row for row in batch]
        if all(isinstance(row, Mapping) for row in rows):
            return rows
    elif isinstance(batch, Mapping):
        _check_columns(batch)
        columns = {str(name): list(column) for name, column in batch.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    elif hasattr(batch, "to_pylist") and hasattr(batch, "column_names"):
        _check_unique(batch.column_names)
        return cast("list[Mapping[str, Any]]", batch.to_pylist())
    elif hasattr(batch, "to_dict") and hasattr(batch, "columns"):
        _check_unique(batch.columns)
        return cast("list[Mapping[str, Any]]", batch.to_dict(orient="records"))
    raise ConfigurationError(
        f"ChatBatch was called with a {type(batch).__name__}. Nothing was paid. Give a list of dicts or of prompts, a "
        "pandas DataFrame, a dict of columns, or a pyarrow Table."
    )


def _check_columns(batch: Mapping[Any, Any]) -> None:
    """Raises ConfigurationError for a dict whose columns are no lists of one length."""
    for name, column in batch.items():
        if isinstance(column, str | bytes | Mapping) or not hasattr(column, "__len__"):
            raise ConfigurationError(
                f"The column {name!r} is a {type(column).__name__}. Nothing was paid. Give a list of values for each "
                "column; one row alone is a list with one dict."
            )
    lengths = {str(name): len(column) for name, column in batch.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigurationError(
            f"The columns have different lengths ({lengths}). Nothing was paid. Correct the table."
        )


def _check_unique(names: Iterable[Any]) -> None:
    """Raises ConfigurationError for a table in which two columns have one name."""
    [(name, times)] = Counter(map(str, names)).most_common(1) or [("", 0)]
    if times > 1:
        raise ConfigurationError(
            f"The table has {times} columns with the name {name!r}. Nothing was paid. Rename all but one."
        )


def _array(numpy: Any, name: str, column: list[Any]) -> Any:
    if name in _FLAGS:
        return numpy.array(column, dtype=bool)
    array = numpy.empty(len(column), dtype=object)
    array[:] = column
    return array


def _onto_arrow(table: Any, columns: Mapping[str, list[Any]], *, prefix: str) -> Any:
    import pyarrow as pa

    for name, column in columns.items():
        kind = pa.string()
        if name.removeprefix(prefix) in _NUMBERS:
            kind = pa.int64()
        elif name.removeprefix(prefix) in _FLAGS:
            kind = pa.bool_()
        table = table.append_column(name, pa.array(column, kind))
    return table


def _onto_frame(frame: Any, columns: Mapping[str, list[Any]], *, prefix: str) -> Any:
    import pandas as pd

    def series(name: str, column: list[Any]) -> Any:
        kind = "Int64" if name in _NUMBERS else "bool" if name in _FLAGS else "object"
        return pd.Series(column, index=frame.index, dtype=kind)

    return frame.assign(**{name: series(name.removeprefix(prefix), column) for name, column in columns.items()})
