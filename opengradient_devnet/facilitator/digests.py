"""The EIP-712 digests that payers sign, and who signed one. Pure functions.

They share no code with the paying side on purpose: a mistake there must not be repeated here, or no test would see it.
"""

from __future__ import annotations

from eth_abi.abi import encode
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from opengradient_devnet.contracts import BATCH_SETTLEMENT, PERMIT2

# Permit2's SignatureTransfer types, with x402's witnesses (upto names its facilitator, exact does not).
_TOKEN = "TokenPermissions(address token,uint256 amount)"  # noqa: S105  # an EIP-712 type, not a password
_UPTO_WITNESS = "Witness(address to,address facilitator,uint256 validAfter)"
_EXACT_WITNESS = "Witness(address to,uint256 validAfter)"
_PERMIT = (
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
    "Witness witness)"
)
_PERMIT2_DOMAIN = "EIP712Domain(string name,uint256 chainId,address verifyingContract)"
_TOKEN_DOMAIN = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"  # noqa: S105
_TRANSFER = (
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)

# x402 batch-settlement
_CHANNEL = (
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,"
    "uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER = "Voucher(bytes32 channelId,uint128 maxClaimableAmount)"


def _struct(type_string: str, types: list[str], values: list[object]) -> bytes:
    return keccak(encode(["bytes32", *types], [keccak(text=type_string), *values]))


def _digest(domain: bytes, message: bytes) -> bytes:
    return keccak(b"\x19\x01" + domain + message)


def permit2_digest(
    *,
    chain_id: int,
    token: str,
    amount: int,
    spender: str,
    nonce: int,
    deadline: int,
    to: str,
    facilitator: str | None,
    valid_after: int,
) -> bytes:
    """What a payer signs for upto, or (`facilitator` None) for exact over Permit2."""
    if facilitator is None:
        witness_type = _EXACT_WITNESS
        witness = _struct(witness_type, ["address", "uint256"], [to, valid_after])
    else:
        witness_type = _UPTO_WITNESS
        witness = _struct(witness_type, ["address", "address", "uint256"], [to, facilitator, valid_after])
    permitted = _struct(_TOKEN, ["address", "uint256"], [token, amount])
    message = _struct(
        _PERMIT + _TOKEN + witness_type,
        ["bytes32", "address", "uint256", "uint256", "bytes32"],
        [permitted, spender, nonce, deadline, witness],
    )
    domain = _struct(_PERMIT2_DOMAIN, ["bytes32", "uint256", "address"], [keccak(text="Permit2"), chain_id, PERMIT2])
    return _digest(domain, message)


def eip3009_digest(
    *,
    chain_id: int,
    token: str,
    name: str,
    version: str,
    payer: str,
    to: str,
    value: int,
    valid_after: int,
    valid_before: int,
    nonce: bytes,
) -> bytes:
    """What a payer signs for a `transferWithAuthorization` of a token with this name and version."""
    domain = _struct(
        _TOKEN_DOMAIN,
        ["bytes32", "bytes32", "uint256", "address"],
        [keccak(text=name), keccak(text=version), chain_id, token],
    )
    message = _struct(
        _TRANSFER,
        ["address", "address", "uint256", "uint256", "uint256", "bytes32"],
        [payer, to, value, valid_after, valid_before, nonce],
    )
    return _digest(domain, message)


def channel_digest(config: tuple[object, ...], *, chain_id: int) -> bytes:
    """A channel's id, from the struct that its contract takes."""
    types = ["address", "address", "address", "address", "address", "uint40", "bytes32"]
    return _digest(_channels_domain(chain_id), _struct(_CHANNEL, types, list(config)))


def voucher_digest(channel_id: bytes, max_claimable: int, *, chain_id: int) -> bytes:
    """What a payer signs for all that may be claimed from a channel."""
    return _digest(_channels_domain(chain_id), _struct(_VOUCHER, ["bytes32", "uint128"], [channel_id, max_claimable]))


def _channels_domain(chain_id: int) -> bytes:
    name, version = keccak(text="x402 Batch Settlement"), keccak(text="1")
    types = ["bytes32", "bytes32", "uint256", "address"]
    return _struct(_TOKEN_DOMAIN, types, [name, version, chain_id, BATCH_SETTLEMENT])


def recover(digest: bytes, signature: bytes) -> str | None:
    """The address whose key made a 65-byte signature (v 0, 1, 27 or 28); None when nobody's did."""
    if len(signature) != 65:
        return None
    parity = signature[64] - 27 if signature[64] >= 27 else signature[64]
    try:
        made = Signature(signature[:64] + bytes([parity]))
        return made.recover_public_key_from_msg_hash(digest).to_checksum_address()
    except (BadSignature, ValidationError):
        return None
