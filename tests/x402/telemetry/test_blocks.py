"""What holds inside of a `with` block, in generators whose steps run in different contexts too."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, contextmanager

from opengradient_x402.telemetry.blocks import Blocks
from opengradient_x402.telemetry.runs import name_of_run, named_run
from support.steps import begun_elsewhere, in_steps


def named_twice(name: str) -> Generator[str | None, None, None]:
    with named_run(name):
        yield name_of_run()
        yield name_of_run()
    yield name_of_run()


def test_a_block_in_a_generator_holds_in_each_step_wherever_it_is_run():
    assert in_steps(named_twice("mine")) == ["mine", "mine", None]
    assert list(named_twice("mine")) == ["mine", "mine", None]
    assert name_of_run() is None


def test_the_inner_block_counts_also_when_the_outer_one_began_in_another_context():
    def generator() -> Generator[str | None, None, None]:
        with named_run("outer"):
            yield name_of_run()
            with named_run("inner"):
                yield name_of_run()
            yield name_of_run()

    assert in_steps(generator()) == ["outer", "inner", "outer"]
    with named_run("of the server"):
        assert in_steps(generator()) == ["outer", "inner", "outer"]
        assert name_of_run() == "of the server"


def test_a_block_that_somebody_else_s_context_manager_opens_belongs_to_the_generator_that_uses_it():
    @contextmanager
    def tracked(name: str) -> Generator[None]:
        with named_run(name):
            yield

    def generator() -> Generator[str | None, None, None]:
        with ExitStack() as stack:
            stack.enter_context(tracked("mine"))
            yield name_of_run()
            yield name_of_run()

    assert in_steps(generator()) == ["mine", "mine"]


def test_a_generator_that_is_closed_in_another_context_leaves_nothing_behind():
    generator = named_twice("mine")
    assert begun_elsewhere(generator) == "mine"
    generator.close()
    generator = named_twice("mine")
    assert next(generator) == "mine"
    begun_elsewhere(generator)
    assert name_of_run() == "mine"
    begun_elsewhere(generator)  # here the block ends
    assert name_of_run() is None


async def test_an_async_generator_that_the_loop_closes_leaves_nothing_behind():
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

    async def generator() -> AsyncGenerator[str | None]:
        with named_run("mine"):
            yield name_of_run()
            yield name_of_run()

    async for name in generator():
        assert name == "mine"
        break
    gc.collect()
    await asyncio.sleep(0.01)
    assert (faults, name_of_run()) == ([], None)


async def test_a_block_holds_in_steps_that_are_tasks_of_their_own():
    async def generator() -> AsyncGenerator[str | None]:
        with named_run("mine"):
            yield name_of_run()
            await asyncio.sleep(0)
            yield name_of_run()

    steps = generator()
    assert [await asyncio.create_task(anext(steps)) for _ in range(2)] == ["mine", "mine"]  # as wait_for does it
    await steps.aclose()
    assert name_of_run() is None


def test_generators_that_take_turns_end_in_any_order():
    one, other = named_twice("one"), named_twice("other")
    assert [next(one), next(other), next(one), next(other)] == ["one", "other", "other", "other"]
    assert [next(one), next(other)] == ["other", None]
    assert name_of_run() is None


def test_a_generator_that_nobody_reads_on_is_not_kept():
    blocks = Blocks[str]("test")

    def generator() -> Generator[tuple[str, ...], None, None]:
        with blocks.opened("mine"):
            yield blocks.values()

    dropped = generator()
    assert next(dropped) == ("mine",)
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    assert (blocks.values(), blocks.alone()) == ((), ())


def test_what_holds_everywhere_is_known_where_no_block_is_open():
    blocks = Blocks[str]("test")

    def generator(name: str) -> Generator[tuple[str, ...], None, None]:
        with blocks.opened(name):
            yield blocks.alone()

    one, other = generator("one"), generator("other")
    assert begun_elsewhere(one) == ("one",)
    assert blocks.values() == ()
    assert blocks.alone() == ("one",)
    assert begun_elsewhere(other) == ()
    one.close()
    assert blocks.alone() == ("other",)
    other.close()
    assert blocks.alone() == ()
