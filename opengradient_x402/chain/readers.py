"""Answers to questions about a chain, for callers that wait: the node of a place, asked from a thread."""

from __future__ import annotations

from typing import Self, TypeVar

from opengradient_x402.chain.node import (
    NODE_TIMEOUT_S,
    HttpNode,
    Line,
    Node,
    Place,
    Question,
    ask,
    look_up,
)
from opengradient_x402.effects import drive

T = TypeVar("T")


def node_at(place: Place, *, timeout_s: float = NODE_TIMEOUT_S) -> Node:
    """The node of a place: the user's Web3 object where it has one, else the nodes behind its URL."""
    if (web3 := getattr(place, "web3", None)) is not None:
        from opengradient_x402.chain.web3_nodes import web3_node

        return web3_node(web3, place.chain_id, timeout_s=timeout_s)
    return HttpNode(place.rpc_url, place.chain_id, timeout_s=timeout_s)


class ChainReader:
    """Answers questions over one node, in threads.

    As a context manager it keeps its connection; otherwise every question opens one and closes it.
    Raises ChainUnavailable (RpcError when the node answered), ConfigurationError for another chain's node.
    """

    def __init__(
        self, rpc_url: str, chain_id: int, *, timeout_s: float = NODE_TIMEOUT_S, node: Node | None = None
    ) -> None:
        self._node = node if node is not None else HttpNode(rpc_url, chain_id, timeout_s=timeout_s)
        self._kept: Line | None = None

    @classmethod
    def at(cls, place: Place, *, timeout_s: float = NODE_TIMEOUT_S) -> Self:
        """The reader of a place's node."""
        return cls(place.rpc_url, place.chain_id, node=node_at(place, timeout_s=timeout_s))

    def __enter__(self) -> Self:
        self._kept = Line()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kept is not None:
            self._kept.__exit__(*exc_info)
            self._kept = None

    def ask(self, question: Question[T]) -> T:
        """Run a question to its answer."""
        steps = ask(self._node, question)
        return look_up(steps) if self._kept is None else drive(steps, self._kept.send)
