"""Money invariants under everything at once: many calls, gateways, nodes, clocks, crashes and forks, by seed.

A failing seed says its number, its step and its last steps; `broken_by` with that seed makes the same steps again.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

from simulation.breaks import BREAKS
from simulation.broken import Broken
from simulation.machine import Stage
from simulation.world import Rules, World

SHORT, NEXT = range(12), range(12, 24)
LONG = range(1_000, 2_000)
_FOUND_BY = {
    "second_nonce_space": 70,
    "later_signature_overwrites": 0,
    "earlier_signature_forgotten": 0,
    "denial_is_believed": 4,
    "error_is_believed": 1,
    "lost_answer_is_unsent": 1,
    "new_nonce_for_new_terms": 5,
    "expiry_by_two_nodes": 30,
    "clock_unchecked": 5,
    "quote_is_believed": 13,
    "maximum_is_believed": 5,
    "signs_before_writing": 1,
    "final_at_first_sight": 35,
    "no_margin_for_expiry": 2,
    "budget_of_one_process": 6,
    "voucher_before_writing": 0,
    "lost_voucher_never_left": 0,
    "channels_of_each_process": 3,
    "charge_is_believed": 67,
    "old_block_is_news": 0,
    "claims_count_for_each_call": 0,
}
"""The seed that finds each break. When the product asks the world for other things, a later one does."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the ledgers are: in memory where the system has such a place, since what is tested is no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def broken_by(seed: int, folder: Path, stage: Stage, rules: Rules) -> tuple[World, Broken | None]:
    """The run of a seed, and the invariant that it broke."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        world = World(seed, Path(own), stage, rules)
        try:
            world.run()
        except Broken as exc:
            return world, exc
    return world, None


@pytest.mark.parametrize("seeds", [SHORT, pytest.param(NEXT, marks=pytest.mark.matrix)], ids=str)
def test_the_invariants_hold_for_a_few_seeds(seeds, folder):
    counted: Counter[str] = Counter()
    stage = Stage()
    with stage.set_up():
        for seed in seeds:
            world, broken = broken_by(seed, folder, stage, Rules(calls=100))
            counted += world.counted
            if broken is not None:
                raise broken

    # The runs were about something: calls that were paid, and calls that came to every kind of end.
    assert counted["ok"] > 300
    assert counted["signatures sent"] > 200
    assert {"PaymentOutcomeUnknown", "PolicyRefused", "BudgetExceeded", "PaidButFailed", "StreamInterrupted"} <= {
        *counted
    }


def test_a_seed_makes_the_same_steps_again(folder):
    stage = Stage()
    with stage.set_up():
        first, second = (broken_by(21, folder, stage, Rules(calls=60))[0] for _ in range(2))

    assert list(first.trace) == list(second.trace)
    assert (first.step, first.counted) == (second.step, second.counted)


def test_no_class_keeps_a_clock_of_its_own_that_the_simulation_cannot_turn():
    clocks = (time.time, time.monotonic, time.perf_counter)
    kept = []
    with Stage().set_up():
        modules = [module for name, module in sys.modules.items() if name.startswith("opengradient_x402.")]
        for made in {made for module in modules for made in vars(module).values() if is_dataclass(made)}:
            kept += [f"{made}.{field.name}" for field in fields(made) if field.default_factory in clocks]

    assert not kept, "the time since a machine's start would decide what a seed does"


@pytest.mark.matrix
@pytest.mark.parametrize("name", BREAKS)
def test_each_known_break_is_found(name, folder):
    stage = Stage()
    rules = Rules(has_two_nodes=name == "expiry_by_two_nodes", has_forks=name == "final_at_first_sight")

    def with_break(seed: int) -> tuple[World, Broken | None]:
        with pytest.MonkeyPatch.context() as patch:
            BREAKS[name](patch)
            return broken_by(seed, folder, stage, rules)

    with stage.set_up():
        for seed in range(_FOUND_BY[name], _FOUND_BY[name] + 200):
            world, broken = with_break(seed)
            # A run that breaks without it too shows nothing about this break.
            if broken is not None and broken_by(seed, folder, stage, rules)[1] is None:
                break
        else:
            pytest.fail(f"no seed up to {seed} finds it")
        again, broken_again = with_break(seed)

    print(f"{name}: seed {seed}, step {world.step}: {broken}")
    assert broken.rule != "errors are ours"  # the break was found, and no fault of the simulation
    assert (world.step, str(broken)) == (again.step, str(broken_again))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_invariants_hold_for_many_seeds():
    began = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        results = list(workers.map(_run_some, [LONG[first : first + 10] for first in range(0, len(LONG), 10)]))
    broken = [text for _, texts in results for text in texts]
    counted = sum((some for some, _ in results), Counter[str]())
    print(f"{len(LONG)} seeds, {time.perf_counter() - began:.0f} s, {dict(counted)}")

    assert not broken, "\n\n".join(broken)
    assert counted["simulated calls"] >= 200_000


def _run_some(seeds: range) -> tuple[Counter[str], list[str]]:
    counted, broken, stage = Counter[str](), [], Stage()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder, stage.set_up():
        for seed in seeds:
            world, problem = broken_by(seed, Path(folder), stage, Rules())
            counted += world.counted + Counter({"simulated calls": world.calls})
            if problem is not None:
                broken.append("\n".join([str(problem), *problem.__notes__]))
    return counted, broken
