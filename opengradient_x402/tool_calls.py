"""Tool calls, put together from the pieces in which gateways send them.

Pieces may come whole or in fragments, with an index, without one, with the same index for every call, or with
ids that are repeated. A piece belongs to a call by its index, then by its id, then to the one that is open.
Arguments are kept as text: nothing here parses them for meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opengradient_x402 import strict_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as the model made it. `arguments` is JSON text and may be malformed; `id` may be empty."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of a tool call. `index` counts calls from 0 in order of appearance and is ours, so it is stable.

    `id` and `name` are given on one delta of a call only, normally the first.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class _OpenCall:
    """A tool call under construction."""

    __slots__ = ("id", "index", "name", "pieces")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.pieces: list[str] = []

    def take(self, part: Mapping[str, Any]) -> ToolCallDelta:
        """Adds one wire fragment; the delta names id and name only when they are new."""
        function = part.get("function") or {}
        new_id = part.get("id") if not self.id else None
        new_name = function.get("name") if not self.name else None
        self.id = self.id or new_id or ""
        self.name = self.name or new_name or ""
        arguments = _arguments_text(function.get("arguments"))
        self.pieces.append(arguments)
        return ToolCallDelta(self.index, new_id or None, new_name or None, arguments)

    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole JSON document."""
        try:
            strict_json.loads("".join(self.pieces))
        except ValueError:
            return False
        return True

    def build(self) -> ToolCall:
        return ToolCall(id=self.id, name=self.name, arguments="".join(self.pieces))


def _arguments_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else strict_json.dumps(arguments).decode()


class ToolCallAssembly:
    """Which call a fragment belongs to: by index, then by id, then the one that is open."""

    __slots__ = ("_by_id", "_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str, _OpenCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def take(self, part: Mapping[str, Any]) -> ToolCallDelta:
        index, call_id = part.get("index"), part.get("id")
        if isinstance(index, int):
            call = self._by_index.get(index)
            if call is None or (call_id and call.id and call.id != call_id):
                # some gateways send index 0 for every call: another id means another call
                call = self._by_index[index] = self._open()
        elif call_id:
            call = self._by_id.get(call_id) or self._open()
        else:
            call = self._unlabelled(part)
        delta = call.take(part)
        if call.id:
            self._by_id.setdefault(call.id, call)
        return delta

    def _unlabelled(self, part: Mapping[str, Any]) -> _OpenCall:
        if not self._calls:
            return self._open()
        last = self._calls[-1]
        starts_new = bool((part.get("function") or {}).get("name")) and bool(last.name) and last.is_complete()
        return self._open() if starts_new else last

    def _open(self) -> _OpenCall:
        call = _OpenCall(len(self._calls))
        self._calls.append(call)
        return call

    def build(self) -> tuple[ToolCall, ...]:
        return tuple(call.build() for call in self._calls)
