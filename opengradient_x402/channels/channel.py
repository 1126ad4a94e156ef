"""A payment channel and its vouchers, as they are remembered. Amounts are atomic units, times Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass

from opengradient_x402.chain.eip712 import ChannelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """A signature that moves an amount into a channel; `salt` makes its nonce."""

    amount_atomic: int
    salt: int
    deadline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel(ChannelConfig):
    """A channel: who pays whom, and what was signed, charged and seen on the chain so far."""

    id: str
    network: str
    endpoint: str
    """Where its calls go; another gateway of the same receiver has channels of its own."""
    transfer_method: str
    status: str = "open"
    """`open`; `closing` while a withdrawal waits, so that no call uses it; `closed` when nothing is left in it."""
    charged_atomic: int = 0
    """What the calls cost so far: a claim of the gateway, checked against what was signed."""
    signed_atomic: int = 0
    """The highest voucher: all that can ever be claimed."""
    balance_atomic: int = 0
    """All deposits that the chain shows, without what came back."""
    claimed_atomic: int = 0
    """What the chain shows as claimed."""
    foreign_atomic: int = 0
    """What calls cost that are in no ledger known here: those of a lost one, or of another user of the key."""
    seen_block: int = 0
    """The block that balance and claims were read at: an older block shows nothing new."""
    withdrawing_since: int = 0
    used_at: int = 0
    held_by: str = ""
    """Which wallet of which process has a call on it now; empty while it is free."""
    held_until: int = 0
    """When the hold ends, if nothing is known of that process by then."""
    deposit: Deposit | None = None
    """The deposit that was signed last, while the chain does not show it."""

    @property
    def free_atomic(self) -> int:
        """What is left for further calls."""
        return max(0, self.balance_atomic - max(self.charged_atomic, self.claimed_atomic))

    @property
    def is_pending(self) -> bool:
        """Whether a deposit is out that the chain has not shown yet."""
        return self.deposit is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """What one call may add to a channel: from `base_atomic`, which was charged before, up to `max_atomic`."""

    authorization_id: str
    channel_id: str
    base_atomic: int
    max_atomic: int
    charged_atomic: int | None = None
    """A claim of the gateway; None while the outcome of the call is unknown."""
    signed_atomic: int = 0
    """The highest sum that was signed for this call. A correction lowers `max_atomic`, but takes no signature back."""

    @property
    def ceiling_atomic(self) -> int:
        """What the channel can be charged after this call, by any of its signatures."""
        return max(self.max_atomic, self.signed_atomic)

    @property
    def end_atomic(self) -> int:
        """What the channel had been charged after this call; with an unknown outcome, the most it can be."""
        return self.max_atomic if self.charged_atomic is None else self.base_atomic + self.charged_atomic
