"""A node that is some blocks behind: the chain as it was before them, however often it is asked.

Two nodes behind one URL differ like that. It is made from a node that is up to date, by asking it about older blocks
and by hiding what came later. Transactions are sent as on any node.
"""

from __future__ import annotations

from typing import Any, Protocol

from opengradient_devnet.chain.chain import RpcError

_HEAD_TAGS = (None, "latest", "safe", "finalized", "pending")
# Where these methods have the block that they are about.
_TAG_AT = {
    "eth_call": 1,
    "eth_estimateGas": 1,
    "eth_getBalance": 1,
    "eth_getBlockByNumber": 0,
    "eth_getBlockReceipts": 0,
    "eth_getCode": 1,
    "eth_getStorageAt": 2,
    "eth_getTransactionCount": 1,
    "eth_feeHistory": 1,
}
_NULL_IF_LATER = frozenset({"eth_getBlockByHash", "eth_getTransactionReceipt", "eth_getTransactionByHash"})
_NULL_IF_UNKNOWN = frozenset({"eth_getBlockByNumber", "eth_getBlockReceipts"})
_BLOCK_UNKNOWN = -32000


class Node(Protocol):
    """Answers JSON-RPC methods; raises `RpcError`."""

    def rpc(self, method: str, params: list[Any]) -> Any: ...


class LaggingNode:
    """`node`, `blocks` blocks ago."""

    def __init__(self, node: Node, *, blocks: int) -> None:
        self._node = node
        self._blocks = blocks

    def rpc(self, method: str, params: list[Any]) -> Any:
        """The answer of a node that has not seen the last blocks."""
        head = max(0, int(self._node.rpc("eth_blockNumber", []), 16) - self._blocks)
        if method == "eth_blockNumber":
            return hex(head)
        if method == "eth_getLogs" and params and isinstance(params[0], dict):
            return self._logs(params[0], head=head)
        if method in _TAG_AT:
            return self._at(method, params, head=head)
        answer = self._node.rpc(method, params)
        return None if method in _NULL_IF_LATER and _is_later(answer, head=head) else answer

    def _at(self, method: str, params: list[Any], *, head: int) -> Any:
        position = _TAG_AT[method]
        params = [*params, *[None] * (position + 1 - len(params))]
        tag = params[position]
        if isinstance(tag, dict):
            tag = tag.get("blockNumber", tag)
        if tag in _HEAD_TAGS:
            params[position] = hex(head)
        elif isinstance(tag, str) and _number(tag) > head:
            if method in _NULL_IF_UNKNOWN:
                return None
            raise RpcError(_BLOCK_UNKNOWN, "header not found")
        return self._node.rpc(method, params)

    def _logs(self, query: dict[str, Any], *, head: int) -> Any:
        if query.get("blockHash") is not None:
            found = self._node.rpc("eth_getLogs", [query])
            if any(_is_later(log, head=head) for log in found):
                raise RpcError(_BLOCK_UNKNOWN, "header not found")
            return found
        first, last = query.get("fromBlock"), query.get("toBlock")
        if first not in _HEAD_TAGS and _number(first) > head:
            return []
        shown = {"fromBlock": hex(head) if first in _HEAD_TAGS else first}
        shown["toBlock"] = hex(head) if last in _HEAD_TAGS or _number(last) > head else last
        return self._node.rpc("eth_getLogs", [{**query, **shown}])


def _number(tag: Any) -> int:
    try:
        return int(tag, 16) if isinstance(tag, str) else int(tag)
    except (TypeError, ValueError):
        return 0  # "earliest", a hash, or nonsense that the node itself refuses


def _is_later(answer: Any, *, head: int) -> bool:
    place = (answer.get("blockNumber") or answer.get("number")) if isinstance(answer, dict) else None
    return place is not None and _number(place) > head
