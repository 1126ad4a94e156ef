"""Tool calls, whole and in fragments, from all forms that gateways send.

A fragment belongs to a call by its index, then by its id, then to the call that is open; arguments stay text.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from opengradient_x402 import strict_json
from opengradient_x402.completions.extras import cleaned, copied, grow
from opengradient_x402.strict_json import WholeCharacters

_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]+')
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

    The first delta of a call has its `id` and its whole `name`, and no other has them: it waits until no more of the
    name can come.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class _JsonText:
    """JSON text that arrives in pieces, with the control characters in its strings escaped.

    Models write line feeds there without escaping them, which some JSON parsers refuse.
    """

    __slots__ = ("_after_backslash", "_in_string")

    def __init__(self) -> None:
        self._in_string = self._after_backslash = False

    def take(self, text: str) -> str:
        if not text or _PLAIN.fullmatch(text):
            self._after_backslash = self._after_backslash and not text
            return text
        return "".join(map(self._char, text))

    def _char(self, char: str) -> str:
        if not self._in_string:
            self._in_string = char == '"'
        elif self._after_backslash:
            self._after_backslash = False
        elif char < " ":
            return f"\\u{ord(char):04x}"
        else:
            self._after_backslash = char == "\\"
            self._in_string = char != '"'
        return char


class _OpenCall:
    """A tool call under construction."""

    __slots__ = ("_is_blank", "_text", "extras", "id", "index", "is_told", "name", "pieces", "served_id", "whole")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.served_id = ""
        self.name = ""
        self.pieces: list[str] = []
        self.whole = WholeCharacters()
        self.is_told = False
        """Whether a delta has said its id and name."""
        self._is_blank = True
        self._text = _JsonText()
        self.extras: dict[str, Any] = {}

    def take(self, part: Mapping[str, Any], *, used: Container[str]) -> ToolCallDelta | None:
        """Adds one wire fragment; None while more of the name may come."""
        function = _function_of(part)
        self.served_id = self.served_id or str(part.get("id") or "")
        if not self.id:
            is_free = self.served_id and self.served_id not in used
            self.id = self.served_id if is_free else f"call_{uuid4().hex}"
        new_name = self._new_name(function.get("name"))
        self.name += new_name
        arguments = self.whole.take(_arguments_text(function.get("arguments")))
        if not part.keys() <= _READ:
            grow(self.extras, copied({key: part[key] for key in part.keys() - _READ if part[key] is not None}))
        shown = self._shown(arguments)
        self.pieces.append(arguments)
        if self.is_told:
            return ToolCallDelta(self.index, None, new_name or None, shown)
        return self.told(shown) if shown else None

    def told(self, arguments: str = "") -> ToolCallDelta:
        """The first delta of this call."""
        self.is_told = True
        return ToolCallDelta(self.index, self.id, self.name or None, arguments)

    def _shown(self, arguments: str) -> str:
        """The text for the reader of the stream: JSON that later fragments can only extend."""
        arguments = self._text.take(arguments)
        if not self._is_blank:
            return arguments
        # A tool without parameters may be called with `null`, or with blanks: no object begins so.
        arguments = arguments.lstrip()
        if arguments.rstrip() == "null":
            return ""
        self._is_blank = not arguments
        return arguments

    def _new_name(self, name: Any) -> str:
        """What a fragment adds to the name: some servers send it in pieces, and some send all of it each time."""
        if not isinstance(name, str) or (self.name and (name == self.name or not self._is_blank)):
            return ""
        return name

    def rest(self) -> ToolCallDelta | None:
        """The last delta of this call, at the end of the stream."""
        rest = self.whole.rest()
        self.pieces.append(rest)
        if not self.is_told:
            return self.told(rest)
        return ToolCallDelta(self.index, None, None, rest) if rest else None

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
        return ToolCall(
            id=self.id, name=self.name, arguments=arguments, served_id=served_id, extras=cleaned(self.extras)
        )


def _function_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
    function = part.get("function")
    return function if isinstance(function, Mapping) else {}


def _arguments_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else strict_json.dumps(cleaned(arguments)).decode()


class ToolCallAssembly:
    """Which call a fragment belongs to: by index, then by id, then the one that is open.

    In a whole answer (`are_whole`) each one is a call by itself, also when names or ids are equal.
    """

    __slots__ = ("_are_whole", "_by_id", "_by_index", "_calls")

    def __init__(self, *, are_whole: bool = False) -> None:
        self._are_whole = are_whole
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str, _OpenCall] = {}

    def take(self, part: Mapping[str, Any]) -> list[ToolCallDelta]:
        """What this fragment lets a reader know: of the call before it too, when another one begins."""
        before = self._calls[-1] if self._calls else None
        call = self._open() if self._are_whole else self._call_of(part)
        delta = call.take(part, used=self._by_id)
        for known in (call.id, call.served_id):
            if known:
                self._by_id[known] = call
        deltas = [] if delta is None else [delta]
        if before is not None and before is not self._calls[-1] and not before.is_told:
            return [before.told(), *deltas]
        return deltas

    def _call_of(self, part: Mapping[str, Any]) -> _OpenCall:
        index, call_id = part.get("index"), part.get("id")
        if isinstance(index, int):
            call = self._by_index.get(index)
            is_other = call is not None and call_id and call.served_id and call.served_id != call_id
            if call is None or is_other or _starts_again(call, part):
                # some gateways send index 0 for every call: another id, or a name after a whole call, is another call
                call = self._by_index[index] = self._open()
            return call
        if call_id:
            call = self._by_id.get(call_id)
            return self._open() if call is None or _starts_again(call, part) else call
        return self._unlabelled(part)

    def _unlabelled(self, part: Mapping[str, Any]) -> _OpenCall:
        last = self._calls[-1] if self._calls else None
        name = _function_of(part).get("name")
        is_other = last is None or _starts_again(last, part) or bool(name and last.name and name != last.name)
        return self._open() if last is None or is_other else last

    def _open(self) -> _OpenCall:
        call = _OpenCall(len(self._calls))
        self._calls.append(call)
        return call

    def rest(self) -> list[ToolCallDelta]:
        """The last deltas of all calls, at the end of the stream."""
        return [rest for call in self._calls if (rest := call.rest()) is not None]

    def build(self) -> tuple[ToolCall, ...]:
        return tuple(call.build() for call in self._calls)


def _starts_again(call: _OpenCall, part: Mapping[str, Any]) -> bool:
    """Whether the fragment begins another call: it names a tool, and the arguments of this one are whole."""
    return bool(_function_of(part).get("name")) and bool(call.name) and call.is_complete()
