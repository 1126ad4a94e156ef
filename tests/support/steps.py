"""A generator as a web server reads it: each step in another context, on another thread."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

_Item = TypeVar("_Item")
_END = object()


def in_steps(generator: Generator[_Item, None, None]) -> list[_Item]:
    """Everything that `generator` gives, of steps that share nothing but the context of the caller."""
    found: list[_Item] = []
    base = copy_context()
    with ThreadPoolExecutor(1) as pool:
        while (item := pool.submit(base.copy().run, next, generator, _END).result()) is not _END:
            found.append(item)  # type: ignore[arg-type] # anything but the end is an item
    return found


def begun_elsewhere(generator: Generator[_Item, None, None]) -> _Item:
    """The first item, of a step in a context that the caller does not have."""
    return copy_context().run(next, generator)
