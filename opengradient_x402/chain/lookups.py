"""Looking things up in chains, blob stores and the ledger, without saying in which colour.

A lookup is a generator that yields what it needs; `look_up` and `alook_up` provide it, for threads and for
coroutines. Reading moves no money. Does not know what is looked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from opengradient_x402.chain.node import AsyncChainReader, ChainReader, Question
from opengradient_x402.driving import drive, drive_async

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
_TIMEOUT_S: Final = 15.0
_LONGEST_S: Final = 120.0
"""For a whole document: a store that sends a byte now and then must not hold up all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskChain:
    """Put a question to the node of a chain."""

    question: Question[Any]
    rpc_url: str
    chain_id: int


@dataclass(frozen=True, slots=True)
class Download:
    """Read a public document; a `Document` says how that went."""

    url: str


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for a future of the ledger."""

    future: Future[Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before going on."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What was downloaded; `problem` says why there is nothing."""

    content: bytes = b""
    problem: str | None = None


Need = AskChain | Download | Await | Sleep
Lookup = Generator[Need, Any, T]
"""Something to find out: the generator's return value is the answer."""


def look_up(lookup: Lookup[T]) -> T:
    """Run a lookup to its answer. Raises ChainUnavailable, LedgerUnavailable."""
    readers: dict[tuple[str, int], ChainReader] = {}
    with ExitStack() as connections:

        def provide(need: Need) -> Any:
            match need:
                case AskChain():
                    key = (need.rpc_url, need.chain_id)
                    if key not in readers:
                        readers[key] = connections.enter_context(ChainReader(*key))
                    return readers[key].ask(need.question)
                case Download(url):
                    return _downloaded(url)
                case Await(future):
                    return future.result()
                case Sleep(seconds):
                    return time.sleep(seconds)
                case _:
                    assert_never(need)

        return drive(lookup, provide)


async def alook_up(lookup: Lookup[T]) -> T:
    """As `look_up`, for coroutines."""
    readers: dict[tuple[str, int], AsyncChainReader] = {}

    async def provide(need: Need) -> Any:
        match need:
            case AskChain():
                key = (need.rpc_url, need.chain_id)
                reader = readers.setdefault(key, AsyncChainReader(*key))
                return await reader.ask(need.question)
            case Download(url):
                return await _adownloaded(url)
            case Await(future):
                # Shielded: cancelling who waits must not cancel what the ledger writes.
                return await asyncio.shield(asyncio.wrap_future(future))
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case _:
                assert_never(need)

    return await drive_async(lookup, provide)


def _downloaded(url: str) -> Document:
    import httpx

    content, deadline = bytearray(), time.monotonic() + _LONGEST_S
    try:
        with (
            httpx.Client(verify=url.startswith("https:"), timeout=_TIMEOUT_S) as client,
            client.stream("GET", url) as response,
        ):
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > deadline:
                    return _endless(response)
            return _document(response, content)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Document(problem=f"{type(exc).__name__} at {url}")


async def _adownloaded(url: str) -> Document:
    import httpx

    content, deadline = bytearray(), time.monotonic() + _LONGEST_S
    try:
        async with (
            httpx.AsyncClient(verify=url.startswith("https:"), timeout=_TIMEOUT_S) as client,
            client.stream("GET", url) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > deadline:
                    return _endless(response)
            return _document(response, content)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Document(problem=f"{type(exc).__name__} at {url}")


def _document(response: httpx.Response, content: bytearray) -> Document:
    if response.status_code != 200:
        return Document(problem=f"HTTP {response.status_code} at {response.url}")
    return Document(content=bytes(content))


def _endless(response: httpx.Response) -> Document:
    return Document(problem=f"more than {MAX_DOCUMENT_BYTES} bytes, or than {_LONGEST_S:g} s, at {response.url}")
