"""Event logs, indexed by the address that emitted them: a query costs as much as it finds.

Logs come in as JSON-RPC log objects, together with their block number.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Any

# None matches anything, a tuple matches any of its members (all lower case).
TopicFilter = tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    first_block: int
    last_block: int
    addresses: frozenset[str] = frozenset()
    topics: Sequence[TopicFilter] = ()


class LogIndex:
    """Logs in the order of their blocks. Queries answer in that order too."""

    def __init__(self) -> None:
        self._logs: list[dict[str, Any]] = []
        self._blocks: list[int] = []
        self._by_address: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, log: dict[str, Any], *, block_number: int) -> None:
        self._by_address[log["address"].lower()].append(len(self._logs))
        self._logs.append(log)
        self._blocks.append(block_number)

    def rewind(self, *, to_block: int) -> None:
        """Forget the logs of all blocks after `to_block`."""
        keep = bisect_right(self._blocks, to_block)
        del self._logs[keep:], self._blocks[keep:]
        for positions in self._by_address.values():
            del positions[bisect_left(positions, keep) :]

    def find(self, query: LogQuery) -> list[dict[str, Any]]:
        first = bisect_left(self._blocks, query.first_block)
        end = bisect_right(self._blocks, query.last_block)
        positions: Sequence[int] | range = range(first, end)
        if query.addresses:
            positions = list(merge(*(self._of(address, first, end) for address in query.addresses)))
        candidates = (self._logs[position] for position in positions)
        return [log for log in candidates if _topics_match(log["topics"], query.topics)]

    def _of(self, address: str, first: int, end: int) -> list[int]:
        positions = self._by_address.get(address, [])
        return positions[bisect_left(positions, first) : bisect_left(positions, end)]


def _topics_match(topics: Sequence[str], wanted: Sequence[TopicFilter]) -> bool:
    if len(wanted) > len(topics):
        return False
    return all(choice is None or topic in choice for topic, choice in zip(topics, wanted, strict=False))
