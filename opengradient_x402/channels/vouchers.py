"""What a payer signs for a channel, and what a gateway says of one: payloads out, checked claims in. Pure.

Shapes are those of x402's scheme `batch-settlement` on EVM (docs/wire.md, "Channels").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from opengradient_x402.chain.eip712 import (
    ERC3009_COLLECTOR,
    PERMIT2_COLLECTOR,
    RECEIVE_WITH_AUTHORIZATION,
    channel_id,
    deposit_nonce,
    deposit_permit_digest,
    deposit_permit_document,
    transfer_digest,
    transfer_document,
    voucher_digest,
    voucher_document,
)
from opengradient_x402.channels.channel import Channel, Deposit
from opengradient_x402.keys.signer import Signer, recover_address, sign_typed
from opengradient_x402.networks import Network

MAX_ATOMIC: Final = 2**128 - 1
"""Channels count in uint128."""
BUSY: Final = "channel_busy"
STALE: Final = ("cumulative_amount_mismatch", "cumulative_below_claimed")
"""How the reasons end that are answered with the channel's state."""
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,38}", re.ASCII)


def id_of(channel: Channel, network: Network) -> str:
    """The id that a channel with this configuration has, as 0x-hex."""
    return "0x" + channel_id(channel, chain_id=network.chain_id).hex()


def voucher_payload(channel: Channel, max_atomic: int, *, signer: Signer, network: Network) -> dict[str, Any]:
    """The payload of a request on a channel that holds enough: it can take up to `max_atomic` in total."""
    return {"type": "voucher", **_signed_voucher(channel, max_atomic, signer, network)}


def refund_payload(channel: Channel, *, signer: Signer, network: Network) -> dict[str, Any]:
    """Asks for all that is left; its voucher allows nothing beyond what was charged."""
    return {"type": "refund", **_signed_voucher(channel, channel.charged_atomic, signer, network)}


def deposit_payload(
    channel: Channel,
    max_atomic: int,
    deposit: Deposit,
    *,
    signer: Signer,
    network: Network,
    token: tuple[str, str],
) -> dict[str, Any]:
    """The payload of a request that opens a channel, or fills it up; `token` is the EIP-712 domain of the asset.

    The deposit's signature moves its amount into this channel, once, and nowhere else.
    """
    make = _permit if channel.transfer_method == "permit2" else _receive
    return {
        "type": "deposit",
        **_signed_voucher(channel, max_atomic, signer, network),
        "deposit": {
            "amount": str(deposit.amount_atomic),
            "authorization": make(channel, deposit, signer, network, token),
        },
    }


def _signed_voucher(channel: Channel, max_atomic: int, signer: Signer, network: Network) -> dict[str, Any]:
    raw = bytes.fromhex(channel.id[2:])
    signature = sign_typed(
        signer,
        voucher_digest(raw, max_atomic, chain_id=network.chain_id),
        lambda: voucher_document(raw, max_atomic, chain_id=network.chain_id),
    )
    config = {
        "payer": channel.payer,
        "payerAuthorizer": channel.payer_authorizer,
        "receiver": channel.receiver,
        "receiverAuthorizer": channel.receiver_authorizer,
        "token": channel.asset,
        "withdrawDelay": channel.withdraw_delay_s,
        "salt": _bytes32(channel.salt),
    }
    voucher = {"channelId": channel.id, "maxClaimableAmount": str(max_atomic), "signature": "0x" + signature.hex()}
    return {"channelConfig": config, "voucher": voucher}


def _permit(
    channel: Channel, deposit: Deposit, signer: Signer, network: Network, _token: tuple[str, str]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "chain_id": network.chain_id,
        "permit2": network.permit2,
        "token": channel.asset,
        "amount_atomic": deposit.amount_atomic,
        "nonce": deposit.salt,
        "deadline_s": deposit.deadline,
        "channel": bytes.fromhex(channel.id[2:]),
    }
    signature = sign_typed(signer, deposit_permit_digest(**fields), lambda: deposit_permit_document(**fields))
    return {
        "permit2Authorization": {
            "from": channel.payer,
            "permitted": {"token": channel.asset, "amount": str(deposit.amount_atomic)},
            "spender": PERMIT2_COLLECTOR,
            "nonce": str(deposit.salt),
            "deadline": str(deposit.deadline),
            "witness": {"channelId": channel.id},
            "signature": "0x" + signature.hex(),
        }
    }


def _receive(
    channel: Channel, deposit: Deposit, signer: Signer, network: Network, token: tuple[str, str]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "encoded_type": RECEIVE_WITH_AUTHORIZATION,
        "chain_id": network.chain_id,
        "token": channel.asset,
        "token_name": token[0],
        "token_version": token[1],
        "payer": channel.payer,
        "pay_to": ERC3009_COLLECTOR,
        "amount_atomic": deposit.amount_atomic,
        "nonce": deposit_nonce(bytes.fromhex(channel.id[2:]), deposit.salt),
        "valid_before_s": deposit.deadline,
    }
    signature = sign_typed(signer, transfer_digest(**fields), lambda: transfer_document(**fields))
    return {
        "erc3009Authorization": {
            "validAfter": "0",
            "validBefore": str(deposit.deadline),
            "salt": _bytes32(deposit.salt),
            "signature": "0x" + signature.hex(),
        }
    }


# -- what a gateway says


def charge_of(claims: Mapping[str, Any], *, base_atomic: int, max_atomic: int) -> int | str:
    """What PAYMENT-RESPONSE says that a call cost, in atomic units; or the reason, as text, why it is not believed."""
    extra = claims.get("extra")
    state = extra.get("channelState") if isinstance(extra, Mapping) else None
    charged = _amount(extra, "chargedAmount")
    cumulative = _amount(state, "chargedCumulativeAmount")
    if claims.get("success") is not True or charged is None or cumulative is None:
        return "the answer does not say what the call cost"
    if charged > max_atomic - base_atomic:
        return f"it charged {charged} atomic units, and {max_atomic - base_atomic} were allowed for this call"
    if cumulative != base_atomic + charged:
        return f"it counts {cumulative} atomic units in total, but {base_atomic} before plus {charged} is another sum"
    return charged


def corrected_base(
    extra: Mapping[str, Any], channel: Channel, *, claimed_atomic: int, network: Network
) -> tuple[int, int] | str:
    """What a corrective 402 says was charged so far, and the voucher that covers it; or why that is not believed.

    It counts only with a voucher that this payer signed and that covers it, and never below what the chain shows as
    claimed. Without a voucher the chain's figure is taken.
    """
    state, voucher = extra.get("channelState"), extra.get("voucherState")
    signature = voucher.get("signature") if isinstance(voucher, Mapping) else None
    if not signature:
        return claimed_atomic, claimed_atomic
    charged, signed = _amount(state, "chargedCumulativeAmount"), _amount(voucher, "signedMaxClaimable")
    if not isinstance(state, Mapping) or charged is None or signed is None:
        return "its state of the channel cannot be read"
    if str(state.get("channelId", "")).lower() != channel.id:
        return "its state is another channel's"
    digest = voucher_digest(bytes.fromhex(channel.id[2:]), signed, chain_id=network.chain_id)
    if recover_address(digest, _signature_bytes(signature)) != channel.payer_authorizer:
        return f"its voucher for {signed} atomic units was not signed by this wallet"
    if not claimed_atomic <= charged <= signed:
        return (
            f"it counts {charged} atomic units as charged; {claimed_atomic} are claimed on the chain, and {signed} "
            "were signed"
        )
    return charged, signed


def _signature_bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(str(text).removeprefix("0x"))
    except ValueError:
        return b""


def _amount(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if isinstance(value, str) and _DECIMAL.fullmatch(value) and int(value) <= MAX_ATOMIC:
        return int(value)
    return None


def _bytes32(number: int) -> str:
    return "0x" + number.to_bytes(32, "big").hex()
