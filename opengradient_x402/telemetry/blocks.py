"""What holds inside of a `with` block: in its context, in the tasks and threads that it starts, and in its generator.

A context variable alone does not do for generators. Web servers run each step of one in another context, and the
garbage collector closes it in yet another: the variable would be lost after the first step, and could not be set back.
It does not know what holds.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from itertools import count
from types import FrameType
from typing import Any, Final, Generic, TypeVar

_Value = TypeVar("_Value")
_numbers: Final = count()


class _Block(Generic[_Value]):
    """One block. Those of a higher `number` are inside of those of a lower one."""

    __slots__ = ("is_over", "number", "value")

    def __init__(self, value: _Value) -> None:
        self.value = value
        self.number = next(_numbers)
        self.is_over = False


class Blocks(Generic[_Value]):
    """The open blocks of one kind, and what holds where."""

    def __init__(self, name: str) -> None:
        self._of_context: ContextVar[tuple[_Block[_Value], ...]] = ContextVar(f"opengradient_{name}", default=())
        self._of_generators: dict[int, tuple[_Block[_Value], ...]] = {}
        self._all: list[tuple[_Block[_Value], ...]] = []

    @contextmanager
    def opened(self, value: _Value) -> Generator[None]:
        """A block in which `value` holds. In a generator it holds in each step, wherever that is run."""
        block = _Block(value)
        generator = _generator_around(sys._getframe())
        had = self._of_context.get()
        blocks = (*self._holding(sys._getframe()), block)
        if generator is not None:
            self._of_generators[generator] = (*self._of_generators.get(generator, ()), block)
        token = self._of_context.set(blocks)
        self._all.append(blocks)
        try:
            yield
        finally:
            self._all.remove(blocks)
            if generator is not None:
                self._leave_generator(generator, block)
            others = tuple(one for one in self._of_context.get() if one in had or one not in blocks)
            try:
                self._of_context.reset(token)
            except ValueError:
                block.is_over = True  # the context in which it began is another one, and may still have it
            # Blocks of two generators that take turns do not end in the order in which they began.
            self._of_context.set(others)

    def _leave_generator(self, generator: int, block: _Block[_Value]) -> None:
        left = tuple(one for one in self._of_generators[generator] if one is not block)
        if left:
            self._of_generators[generator] = left
        else:
            del self._of_generators[generator]

    def values(self) -> tuple[_Value, ...]:
        """What holds here, of the innermost block last."""
        if not self._of_generators and not self._of_context.get():
            return ()
        return tuple(block.value for block in self._holding(sys._getframe()))

    def _holding(self, frame: FrameType | None) -> list[_Block[_Value]]:
        found = {block.number: block for block in self._of_context.get() if not block.is_over}
        while self._of_generators and frame is not None:
            found.update((block.number, block) for block in self._of_generators.get(id(frame), ()))
            frame = frame.f_back
        return [found[number] for number in sorted(found)]

    def alone(self) -> tuple[_Value, ...]:
        """What holds in the open blocks of the whole process, if all of them are inside of each other; else nothing."""
        everywhere = list(self._all)
        longest = max(everywhere, key=len, default=())
        if any(blocks != longest[: len(blocks)] for blocks in everywhere):
            return ()
        return tuple(block.value for block in longest)


def _generator_around(frame: FrameType | None) -> int | None:
    """The generator whose `with` statement is about to be entered, by the id of its frame; None outside of one.

    The frame is not kept: it would keep the generator, which then nobody closes. A generator that is only the body of
    a context manager (`contextlib`) is passed over, and what uses that one is looked at.
    """
    while frame is not None:
        outer = frame.f_back
        if not _is_contextlib(frame) and not _is_contextlib(outer):
            return id(frame) if frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR) else None
        frame = outer
    return None


def _is_contextlib(frame: FrameType | None) -> Any:
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"
