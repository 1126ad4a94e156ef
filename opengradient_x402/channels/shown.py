"""A payment channel as an audit bundle shows it: its parameters, and where on the chain its events are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from opengradient_x402.addresses import checksum_address
from opengradient_x402.chain.eip712 import ChannelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPlace:
    """Where on the payments' chain an event of a channel is."""

    tx_hash: str
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownChannel(ChannelConfig):
    """A payment channel: its parameters, whose hash is its id, its events, and their sums as the writer of the bundle
    gives them.

    Amounts are atomic units. `returned_atomic` is what the payer got back.
    """

    id: str
    deposited_atomic: int
    claimed_atomic: int
    returned_atomic: int
    events: tuple[EventPlace, ...]

    def to_json(self) -> dict[str, Any]:
        """What a bundle has of it; numbers over 53 bits are text."""
        numbers = {name: str(getattr(self, name)) for name in _NUMBERS}
        return asdict(self) | numbers | {"events": [asdict(place) for place in self.events]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ShownChannel:
        """What `to_json` wrote."""
        parties = {name: checksum_address(body[name]) for name in _PARTIES}
        events = tuple(EventPlace(**place) for place in body["events"])
        return cls(**{**body, **parties, **{name: int(body[name]) for name in _NUMBERS}, "events": events})


_PARTIES: Final = ("payer", "payer_authorizer", "receiver", "receiver_authorizer", "asset")
_NUMBERS: Final = ("salt", "deposited_atomic", "claimed_atomic", "returned_atomic")
