"""Tool calls, whole and in fragments, from whatever gateways send.

A fragment belongs to a call by its index, then by its id, then to the call that is open; arguments stay text.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from opengradient_x402 import strict_json
from opengradient_x402.completions.extras import cleaned, grow
from opengradient_x402.strict_json import WholeCharacters

_READ: Final = frozenset({"index", "id", "type", "function"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as the model made it. `arguments` is JSON text and may be malformed.

    `id` is unique in its answer: made here when the gateway sent none, or one that another call has. What it sent,
    and signed, is `served_id` then.
    """

    id: str
    name: str
    arguments: str
    served_id: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    """What else the provider said of the call, and wants back with it, such as a thought signature."""


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

    __slots__ = ("extras", "id", "index", "name", "pieces", "served_id", "whole")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.served_id = ""
        self.name = ""
        self.pieces: list[str] = []
        self.whole = WholeCharacters()
        self.extras: dict[str, Any] = {}

    def take(self, part: Mapping[str, Any], *, used: Container[str]) -> ToolCallDelta:
        """Adds one wire fragment; the delta names id and name only when they are new."""
        function = part.get("function") or {}
        new_id = None
        self.served_id = self.served_id or str(part.get("id") or "")
        if not self.id:
            is_free = self.served_id and self.served_id not in used
            new_id = self.id = self.served_id if is_free else f"call_{uuid4().hex}"
        new_name = function.get("name") if not self.name else None
        self.name = self.name or new_name or ""
        arguments = self.whole.take(_arguments_text(function.get("arguments")))
        if not part.keys() <= _READ:
            grow(self.extras, cleaned({key: part[key] for key in part.keys() - _READ if part[key] is not None}))
        # A tool without parameters may be called with `null`: no object begins so, and a reader is shown nothing.
        is_null = arguments.strip() == "null" and not "".join(self.pieces).strip()
        self.pieces.append(arguments)
        return ToolCallDelta(self.index, new_id, new_name or None, "" if is_null else arguments)

    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole JSON document."""
        try:
            strict_json.loads("".join(self.pieces))
        except ValueError:
            return False
        return True

    def build(self) -> ToolCall:
        served_id = None if self.served_id == self.id else self.served_id
        arguments = "".join(self.pieces) + self.whole.rest()
        return ToolCall(id=self.id, name=self.name, arguments=arguments, served_id=served_id, extras=self.extras)


def _arguments_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else strict_json.dumps(cleaned(arguments)).decode()


class ToolCallAssembly:
    """Which call a fragment belongs to: by index, then by id, then the one that is open."""

    __slots__ = ("_by_id", "_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str, _OpenCall] = {}

    def take(self, part: Mapping[str, Any]) -> ToolCallDelta:
        index, call_id = part.get("index"), part.get("id")
        if isinstance(index, int):
            call = self._by_index.get(index)
            is_other = call is not None and call_id and call.served_id and call.served_id != call_id
            if call is None or is_other or _starts_again(call, part):
                # some gateways send index 0 for every call: another id, or a name after a whole call, is another call
                call = self._by_index[index] = self._open()
        elif call_id:
            call = self._by_id.get(call_id)
            if call is None or _starts_again(call, part):
                call = self._open()
        else:
            call = self._unlabelled(part)
        delta = call.take(part, used=self._by_id)
        for known in (call.id, call.served_id):
            if known:
                self._by_id[known] = call
        return delta

    def _unlabelled(self, part: Mapping[str, Any]) -> _OpenCall:
        last = self._calls[-1] if self._calls else None
        return self._open() if last is None or _starts_again(last, part) else last

    def _open(self) -> _OpenCall:
        call = _OpenCall(len(self._calls))
        self._calls.append(call)
        return call

    def build(self) -> tuple[ToolCall, ...]:
        return tuple(call.build() for call in self._calls)


def _starts_again(call: _OpenCall, part: Mapping[str, Any]) -> bool:
    """Whether the fragment begins another call: it names a tool, and the arguments of this one are whole."""
    return bool((part.get("function") or {}).get("name")) and bool(call.name) and call.is_complete()
