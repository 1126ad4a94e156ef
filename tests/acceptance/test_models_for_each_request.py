"""Web handlers make a model for each request: 300 of them pay as one model does, in money and in time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import langchain_opengradient
import llama_index_opengradient
from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_devnet import Devnet

# One session pays for all calls of a test: the default cap is used up after a hundred.
pytestmark = pytest.mark.devnet(session_cap_opg="1")

MODELS = 300


@pytest.fixture
def options(net: Devnet, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "openai/gpt-5",
        "private_key": net.account(opg="20", approved=True).private_key,
        "network": f"{net.gateway_url}/network",
        "ledger": str(tmp_path / "ledger.sqlite"),
    }


def langchain_call(model: ChatOpenGradient) -> str:
    return langchain_opengradient.receipt_of(model.invoke("hi")).authorization_id


def llamaindex_call(model: OpenGradient) -> str:
    return llama_index_opengradient.receipt_of(model.complete("hi")).authorization_id


async def langchain_acall(model: ChatOpenGradient) -> str:
    return (await langchain_opengradient.areceipt_of(await model.ainvoke("hi"))).authorization_id


async def llamaindex_acall(model: OpenGradient) -> str:
    return (await llama_index_opengradient.areceipt_of(await model.acomplete("hi"))).authorization_id


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


FACES = pytest.mark.parametrize(
    ("make", "call"),
    [(ChatOpenGradient, langchain_call), pytest.param(OpenGradient, llamaindex_call, marks=pytest.mark.matrix)],
    ids=["langchain", "llamaindex"],
)
ASYNC_FACES = pytest.mark.parametrize(
    ("make", "acall"),
    [pytest.param(ChatOpenGradient, langchain_acall, marks=pytest.mark.matrix), (OpenGradient, llamaindex_acall)],
    ids=["langchain", "llamaindex"],
)


@FACES
def test_one_model_after_another(make, call, options):
    kept = make(**options)
    ids = {call(kept)}
    kept_s, made_s = [], []
    for _ in range(MODELS):  # in turn, so that a busy machine slows both
        kept_s.append(timed(lambda: ids.add(call(kept))))
        made_s.append(timed(lambda: ids.add(call(make(**options)))))
    assert len(ids) <= 2
    quick_kept_s, quick_made_s = statistics.quantiles(kept_s, n=10)[0], statistics.quantiles(made_s, n=10)[0]
    assert quick_made_s <= 1.5 * quick_kept_s  # of the quickest tenth: other programs slow the rest


@FACES
def test_all_at_once_in_threads(make, call, options):
    with ThreadPoolExecutor(MODELS) as pool:
        ids = list(pool.map(lambda _: call(make(**options)), range(MODELS)))
    assert len(ids) == MODELS
    assert len(set(ids)) <= 2


@ASYNC_FACES
async def test_all_at_once_in_one_loop(make, acall, options):
    ids = await asyncio.gather(*(acall(make(**options)) for _ in range(MODELS)))
    assert len(ids) == MODELS
    assert len(set(ids)) <= 2


@ASYNC_FACES
def test_one_loop_after_another(make, acall, options):
    ids = {asyncio.run(acall(make(**options))) for _ in range(20)}
    assert len(ids) <= 2


def test_both_faces_pay_from_one_session(options):
    ids = {langchain_call(ChatOpenGradient(**options)), llamaindex_call(OpenGradient(**options))}
    assert len(ids) == 1
