"""What the chain shows of channels, and the transactions by which a payer takes a deposit back without help.

Questions only (docs/wire.md, "Channels").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, deposit_nonce
from opengradient_x402.chain.questions import Block, Question
from opengradient_x402.chain.views import Nonce, at_one_block, pinned_call, used_at
from opengradient_x402.channels.channel import Channel
from opengradient_x402.channels.events import config_words
from opengradient_x402.errors import RpcError
from opengradient_x402.networks import Network

_CHANNELS: Final = bytes.fromhex("7a7ebd7b")  # channels(bytes32)
_PENDING_WITHDRAWALS: Final = bytes.fromhex("b7f06ebe")  # pendingWithdrawals(bytes32)
_INITIATE_WITHDRAW: Final = bytes.fromhex("cf5cf3dc")  # initiateWithdraw(config, amount)
_FINALIZE_WITHDRAW: Final = bytes.fromhex("e88377b1")  # finalizeWithdraw(config), config being the struct ChannelConfig
_WORD: Final = 32
EXPIRY_MARGIN_S: Final = 30
"""A deposit counts as void this many seconds after its deadline: a reorganisation changes nothing then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """A channel at one block. The balance counts what was claimed; `withdrawing_since` is 0 for no withdrawal."""

    balance_atomic: int
    claimed_atomic: int
    withdrawing_since: int
    block: Block
    is_deposit_over: bool = True
    """Whether the signed deposit was used, or cannot be used any more."""


def channel_state(channel: Channel, *, network: Network, confirmations: int = 1) -> Question[ChannelState]:
    """The channel at one block: the last one with this many `confirmations`, its own block included.

    Raises ChainUnavailable.
    """

    def read(at: Block) -> Question[ChannelState]:
        raw = bytes.fromhex(channel.id[2:])
        balance, claimed = yield from _two_words(_CHANNELS + raw, at)
        amount, since = yield from _two_words(_PENDING_WITHDRAWALS + raw, at)
        return ChannelState(
            balance_atomic=balance,
            claimed_atomic=claimed,
            withdrawing_since=since if amount else 0,
            block=at,
            is_deposit_over=(yield from _is_deposit_over(channel, network, at)),
        )

    return at_one_block(read, confirmations=confirmations)


def _is_deposit_over(channel: Channel, network: Network, at: Block) -> Question[bool]:
    deposit = channel.deposit
    if deposit is None:
        return True
    nonce = Nonce(network.permit2, channel.payer, deposit.salt, is_bitmap=True)
    if channel.transfer_method == "eip3009":
        number = deposit_nonce(bytes.fromhex(channel.id[2:]), deposit.salt)
        nonce = Nonce(channel.asset, channel.payer, number, is_bitmap=False)
    return at.timestamp_s > deposit.deadline + EXPIRY_MARGIN_S or (yield from used_at(nonce, at))


def _two_words(data: bytes, at: Block) -> Question[tuple[int, int]]:
    answer = yield pinned_call(BATCH_SETTLEMENT, data, at)
    try:
        content = bytes.fromhex(answer.removeprefix("0x"))
    except (AttributeError, ValueError):
        content = b"?"
    if not content:
        raise RpcError(
            f"There is no x402BatchSettlement at {BATCH_SETTLEMENT} on this chain, so channels cannot be used here. "
            "Nothing was signed and nothing was paid. Check the network and its `rpc_url`."
        )
    if len(content) != 2 * _WORD:
        raise RpcError("The node's answer about a payment channel cannot be read. Nothing was paid by asking.")
    return int.from_bytes(content[:_WORD], "big"), int.from_bytes(content[_WORD:], "big")


def withdrawal_call(channel: Channel, amount_atomic: int) -> bytes:
    """Calldata of `initiateWithdraw(config, amount)`: the delay of the channel begins."""
    return _INITIATE_WITHDRAW + config_words(channel) + amount_atomic.to_bytes(_WORD, "big")


def finalization_call(channel: Channel) -> bytes:
    """Calldata of `finalizeWithdraw(config)`, which pays out after the delay."""
    return _FINALIZE_WITHDRAW + config_words(channel)
