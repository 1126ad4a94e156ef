"""Where facts are read: the node of each chain, and public documents.

What needs facts is given a `Sources`, so that one check runs live, is recorded, and is replayed from a file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from opengradient_x402.chain.node import HttpNode, Node, Place, Question, RpcRequest, ask
from opengradient_x402.chain.questions import block
from opengradient_x402.chain.readers import node_at
from opengradient_x402.effects import Read, Send, Steps

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
_TIMEOUT_S: Final = 15.0
_LONGEST_S: Final = 120.0
"""For a whole document: a store that sends a byte now and then must not delay all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What was downloaded; `problem` says why there is nothing."""

    content: bytes = b""
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where something was read, and how far it had come then. `name` never holds a path or a key."""

    name: str
    is_chain: bool = True
    block_number: int | None = None
    block_hash: str | None = None

    def to_json(self) -> dict[str, str | int]:
        """A flat dict; what is not known is left out."""
        known = {"source": self.name, "block_number": self.block_number, "block_hash": self.block_hash}
        return {name: value for name, value in known.items() if value is not None}


class Sources:
    """Live sources: nodes and stores are asked now. A chain's node is asked once which chain it serves."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, int, object], Node] = {}
        self._heads: dict[tuple[str, int], Source] = {}

    def ask(self, place: Place, question: Question[T]) -> Steps[T]:
        """The answer to a question about a chain. Raises ChainUnavailable."""
        return (yield from ask(_At(self, place), question))

    def source(self, place: Place) -> Steps[Source]:
        """The chain of a place by its node, at the block that was the last when it was first asked for.

        What is read afterwards is read at this block or a later one. Raises ChainUnavailable.
        """
        key = (place.rpc_url, place.chain_id)
        if key not in self._heads:
            head = yield from self.ask(place, block())
            name = f"chain {place.chain_id} by {self._named(place)}"
            self._heads[key] = Source(name=name, block_number=head.number, block_hash=head.hash)
        return self._heads[key]

    def _named(self, place: Place) -> str:
        node = self._node(place)
        return node.all_shown if isinstance(node, HttpNode) else "the reader's own Web3"

    def request(self, place: Place, request: RpcRequest) -> Steps[Any]:
        """The result of one JSON-RPC request. Raises ChainUnavailable."""
        return (yield from self._node(place).request(request))

    def _key(self, place: Place) -> tuple[str, int, object]:
        """Equal for places that have the same node."""
        return place.rpc_url, place.chain_id, getattr(place, "web3", None)

    def _node(self, place: Place) -> Node:
        key = self._key(place)
        if key not in self._nodes:
            self._nodes[key] = node_at(place)
        return self._nodes[key]

    def blob(self, store: str, blob_id: str) -> Steps[Document]:
        """What a blob store has under an id."""
        return (yield from self.document(f"{store.rstrip('/')}/{quote(blob_id, safe='')}"))

    def document(self, url: str) -> Steps[Document]:
        """A public document. When it cannot be read, `problem` says why; nothing is raised."""
        import httpx

        content, deadline = bytearray(), time.monotonic() + _LONGEST_S

        def take(piece: bytes) -> None:
            content.extend(piece)
            if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > deadline:
                raise _Endless

        try:
            response: httpx.Response = yield Send(_get(url))
            yield Read(response, take)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return Document(problem=f"{type(exc).__name__} at {url}")
        except _Endless:
            return Document(problem=f"more than {MAX_DOCUMENT_BYTES} bytes, or than {_LONGEST_S:g} s, at {url}")
        if response.status_code != httpx.codes.OK:
            return Document(problem=f"HTTP {response.status_code} at {url}")
        return Document(content=bytes(content))


class _Endless(Exception):
    """The document does not end."""


class _At:
    """One chain of the sources, as a node."""

    def __init__(self, sources: Sources, place: Place) -> None:
        self._sources = sources
        self._place = place

    def request(self, request: RpcRequest) -> Steps[Any]:
        return (yield from self._sources.request(self._place, request))


def _get(url: str) -> httpx.Request:
    import httpx

    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT_S)
    return httpx.Request("GET", url, headers={"accept-encoding": "gzip, deflate"}, extensions={"timeout": timeouts})
