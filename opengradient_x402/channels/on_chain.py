"""What the chain shows of channels, and the transactions by which a payer takes a deposit back without anybody's help.

Questions only (docs/wire.md, "Channels").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, deposit_nonce
from opengradient_x402.chain.questions import Block, Question, RpcRequest, block
from opengradient_x402.chain.views import Nonce, nonces_at_one_block
from opengradient_x402.channels.channel import Channel
from opengradient_x402.channels.events import config_words
from opengradient_x402.errors import RpcError
from opengradient_x402.networks import Network

_CHANNELS: Final = "0x7a7ebd7b"  # channels(bytes32)
_PENDING_WITHDRAWALS: Final = "0xb7f06ebe"  # pendingWithdrawals(bytes32)
_INITIATE_WITHDRAW: Final = "0xcf5cf3dc"
_FINALIZE_WITHDRAW: Final = "0xe88377b1"  # finalizeWithdraw(config), config being the struct ChannelConfig
_WORD: Final = 32
EXPIRY_MARGIN_S: Final = 30
"""A deposit counts as void so long after its deadline: a reorganisation changes nothing then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """A channel at one block. The balance counts what was claimed; `withdrawing_since` is 0 for no withdrawal."""

    balance_atomic: int
    claimed_atomic: int
    withdrawing_since: int
    withdrawing_atomic: int
    block: Block
    is_deposit_over: bool = True
    """Whether the signed deposit was used, or cannot be used any more."""


def channel_state(channel: Channel, *, network: Network, confirmations: int = 1) -> Question[ChannelState]:
    """The channel at one block: the last one, or one on which so many stand, its own included.

    Raises ChainUnavailable.
    """
    is_over = channel.deposit is None or (yield from _is_deposit_over(channel, network))
    head = yield from block()
    if confirmations > 1:
        head = yield from block(max(0, head.number - confirmations + 1))
    raw = bytes.fromhex(channel.id[2:])
    balance, claimed = yield from _two_words(_CHANNELS, raw, head)
    amount, since = yield from _two_words(_PENDING_WITHDRAWALS, raw, head)
    return ChannelState(
        balance_atomic=balance,
        claimed_atomic=claimed,
        withdrawing_since=since if amount else 0,
        withdrawing_atomic=amount,
        block=head,
        is_deposit_over=is_over,
    )


def _is_deposit_over(channel: Channel, network: Network) -> Question[bool]:
    deposit = channel.deposit
    if deposit is None:
        return True
    nonce = Nonce(network.permit2, channel.payer, deposit.salt, is_bitmap=True)
    if channel.transfer_method == "eip3009":
        number = deposit_nonce(bytes.fromhex(channel.id[2:]), deposit.salt)
        nonce = Nonce(channel.asset, channel.payer, number, is_bitmap=False)
    (view,) = yield from nonces_at_one_block([nonce])
    return view.used[nonce] or view.timestamp_s > deposit.deadline + EXPIRY_MARGIN_S


def _two_words(selector: str, channel_id: bytes, at: Block) -> Question[tuple[int, int]]:
    call = {"to": BATCH_SETTLEMENT, "data": selector + channel_id.hex()}
    answer = yield RpcRequest("eth_call", (call, hex(at.number)))
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
    return bytes.fromhex(_INITIATE_WITHDRAW[2:]) + config_words(channel) + amount_atomic.to_bytes(_WORD, "big")


def finalization_call(channel: Channel) -> bytes:
    """Calldata of `finalizeWithdraw(config)`, which pays out after the delay."""
    return bytes.fromhex(_FINALIZE_WITHDRAW[2:]) + config_words(channel)
