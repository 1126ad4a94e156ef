"""Two loops that run a generator of effects: the only place where sync and async differ in control flow.

The generator decides, the performer acts; whatever the performer raises goes back into the generator, which
alone knows what a failure means. Neither loop knows what the effects are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

E = TypeVar("E")
R = TypeVar("R")


def drive(steps: Generator[E, Any, R], perform: Callable[[E], Any]) -> R:
    """Runs `steps` to its end and gives back what it returns."""
    try:
        effect = next(steps)
        while True:
            try:
                reply = perform(effect)
            except BaseException as exc:  # noqa: BLE001  (the generator decides what a failure means)
                effect = steps.throw(exc)
            else:
                effect = steps.send(reply)
    except StopIteration as done:
        return cast("R", done.value)


async def drive_async(steps: Generator[E, Any, R], perform: Callable[[E], Awaitable[Any]]) -> R:
    """The same, awaiting the performer."""
    try:
        effect = next(steps)
        while True:
            try:
                reply = await perform(effect)
            except BaseException as exc:  # noqa: BLE001  (cancellation included: it may come after a signature)
                effect = steps.throw(exc)
            else:
                effect = steps.send(reply)
    except StopIteration as done:
        return cast("R", done.value)
