"""EIP-712 digests of what pays: Permit2 for upto and for exact, EIP-3009, and a channel's vouchers and deposits.

Pure functions from field values to 32 bytes, and to the document of which they are the digest, for wallets that sign
nothing else. Knows no keys and no policy. Type hashes and domain separators are computed once and kept: a digest is
then four or five hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from opengradient_x402.addresses import address_word, keccak256

if TYPE_CHECKING:
    from opengradient_x402.networks import Network

_PERMISSIONS: Final = "TokenPermissions(address token,uint256 amount)"  # Permit2, PermitHash.sol
_UPTO_WITNESS: Final = "Witness(address to,address facilitator,uint256 validAfter)"  # x402 upto proxy
_EXACT_WITNESS: Final = "Witness(address to,uint256 validAfter)"  # x402 exact proxy
_PERMIT_WITNESS: Final = (  # Permit2, PermitHash.sol: referenced struct types follow in alphabetical order
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
    "Witness witness)" + _PERMISSIONS
)
TRANSFER_WITH_AUTHORIZATION: Final = (  # EIP-3009
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)
RECEIVE_WITH_AUTHORIZATION: Final = TRANSFER_WITH_AUTHORIZATION.replace("Transfer", "Receive")  # EIP-3009
_CHANNEL_CONFIG: Final = (  # x402 batch-settlement, as the two below
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,"
    "uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER: Final = "Voucher(bytes32 channelId,uint128 maxClaimableAmount)"
_PERMIT_DEPOSIT: Final = (
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
    "DepositWitness witness)DepositWitness(bytes32 channelId)" + _PERMISSIONS
)
_CHANNELS_NAME: Final = "x402 Batch Settlement"
_CHANNELS_VERSION: Final = "1"
BATCH_SETTLEMENT: Final = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
"""x402BatchSettlement, which keeps the channels; like its collectors it has this address on every chain (CREATE2)."""
ERC3009_COLLECTOR: Final = "0x4020806089470a89826cB9fB1f4059150b550004"
PERMIT2_COLLECTOR: Final = "0x4020425FAf3B746C082C2f942b4E5159887B0005"
_CANCEL_AUTHORIZATION: Final = "CancelAuthorization(address authorizer,bytes32 nonce)"  # EIP-3009
_EIP2612_PERMIT: Final = (  # EIP-2612
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
_PERMIT2_DOMAIN: Final = "EIP712Domain(string name,uint256 chainId,address verifyingContract)"  # no version
_ASSET_DOMAIN: Final = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


class Terms(Protocol):
    """What is signed. Addresses are EIP-55, the deadline is in Unix seconds."""

    @property
    def scheme(self) -> str: ...
    @property
    def transfer_method(self) -> str: ...
    @property
    def asset(self) -> str: ...
    @property
    def payee(self) -> str: ...
    @property
    def facilitator(self) -> str | None: ...
    @property
    def spender(self) -> str: ...
    @property
    def amount_atomic(self) -> int: ...
    @property
    def deadline(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """What a payment channel is: its id is the digest of this. The salt has 256 bits, the delay is in seconds."""

    payer: str
    payer_authorizer: str
    receiver: str
    receiver_authorizer: str
    asset: str
    withdraw_delay_s: int
    salt: int


def payment_digest(
    terms: Terms,
    *,
    payer: str,
    nonce: int,
    network: Network,
    token_name: str | None = None,
    token_version: str | None = None,
) -> bytes:
    """The digest that pays by these terms, in the one of three ways that they name.

    `token_name` and `token_version` are the token's EIP-712 domain, the network's when left out. Raises ValueError
    for upto terms without a facilitator, which nobody can settle.
    """
    if terms.transfer_method == "eip3009":
        return transfer_digest(**_transfer_fields(terms, payer, nonce, network, token_name, token_version))
    if terms.scheme == "upto" and terms.facilitator is None:
        raise ValueError("upto terms without a facilitator")
    return permit_digest(
        chain_id=network.chain_id,
        permit2=network.permit2,
        token=terms.asset,
        amount_atomic=terms.amount_atomic,
        spender=terms.spender,
        nonce=nonce,
        deadline_s=terms.deadline,
        pay_to=terms.payee,
        facilitator=terms.facilitator if terms.scheme == "upto" else None,
    )


def payment_document(
    terms: Terms,
    *,
    payer: str,
    nonce: int,
    network: Network,
    token_name: str | None = None,
    token_version: str | None = None,
) -> dict[str, Any]:
    """The typed data of which `payment_digest` is the digest, as `eth_signTypedData_v4` takes it."""
    if terms.transfer_method == "eip3009":
        return transfer_document(**_transfer_fields(terms, payer, nonce, network, token_name, token_version))
    witness: dict[str, Any] = {"to": terms.payee, "facilitator": terms.facilitator, "validAfter": 0}
    witness_type = _UPTO_WITNESS
    if terms.scheme != "upto":
        witness_type = _EXACT_WITNESS
        del witness["facilitator"]
    domain = {"name": "Permit2", "chainId": network.chain_id, "verifyingContract": network.permit2}
    message = {
        "permitted": {"token": terms.asset, "amount": terms.amount_atomic},
        "spender": terms.spender,
        "nonce": nonce,
        "deadline": terms.deadline,
        "witness": witness,
    }
    return _document(_PERMIT2_DOMAIN, domain, _PERMIT_WITNESS + witness_type, message)


def _transfer_fields(
    terms: Terms, payer: str, nonce: int, network: Network, token_name: str | None, token_version: str | None
) -> dict[str, Any]:
    return {
        "encoded_type": TRANSFER_WITH_AUTHORIZATION,
        "chain_id": network.chain_id,
        "token": terms.asset,
        "token_name": network.asset.name if token_name is None else token_name,
        "token_version": network.asset.version if token_version is None else token_version,
        "payer": payer,
        "pay_to": terms.payee,
        "amount_atomic": terms.amount_atomic,
        "nonce": nonce,
        "valid_before_s": terms.deadline,
    }


def _document(domain_type: str, domain: dict[str, Any], types: str, message: dict[str, Any]) -> dict[str, Any]:
    """`types` is the primary type and those that it refers to, in EIP-712's own spelling."""
    primary, _, _ = types.partition("(")
    listed: dict[str, list[dict[str, str]]] = {}
    for name, members in (part.split("(") for part in (domain_type + types).split(")") if part):
        pairs = (member.split(" ") for member in members.split(","))
        listed[name] = [{"name": member, "type": kind} for kind, member in pairs]
    return {"domain": domain, "types": listed, "primaryType": primary, "message": message}


def permit_digest(
    *,
    chain_id: int,
    permit2: str,
    token: str,
    amount_atomic: int,
    spender: str,
    nonce: int,
    deadline_s: int,
    pay_to: str,
    facilitator: str | None,
) -> bytes:
    """The Permit2 digest of a payment: the witness binds the payee, and for upto the facilitator (x402 upto, exact)."""
    witness_type = _EXACT_WITNESS if facilitator is None else _UPTO_WITNESS
    bound = address_word(pay_to) + (b"" if facilitator is None else address_word(facilitator)) + _word(0)
    permit = keccak256(
        _type_hash(_PERMIT_WITNESS + witness_type)
        + _token_permissions(token, amount_atomic)
        + address_word(spender)
        + _word(nonce)
        + _word(deadline_s)
        + keccak256(_type_hash(witness_type) + bound)
    )
    return _digest(_permit2_domain(chain_id, permit2), permit)


def transfer_digest(
    *,
    encoded_type: str,
    chain_id: int,
    token: str,
    token_name: str,
    token_version: str,
    payer: str,
    pay_to: str,
    amount_atomic: int,
    nonce: int,
    valid_before_s: int,
) -> bytes:
    """The digest of an EIP-3009 transfer, in the token's own domain.

    `encoded_type` is TRANSFER_WITH_AUTHORIZATION, or RECEIVE_WITH_AUTHORIZATION, which only the payee can use.
    """
    transfer = keccak256(
        _type_hash(encoded_type)
        + address_word(payer)
        + address_word(pay_to)
        + _word(amount_atomic)
        + _word(0)
        + _word(valid_before_s)
        + _word(nonce)
    )
    return _digest(_token_domain(chain_id, token, token_name, token_version), transfer)


def transfer_document(
    *,
    encoded_type: str,
    chain_id: int,
    token: str,
    token_name: str,
    token_version: str,
    payer: str,
    pay_to: str,
    amount_atomic: int,
    nonce: int,
    valid_before_s: int,
) -> dict[str, Any]:
    """The typed data of which `transfer_digest` is the digest."""
    domain = {"name": token_name, "version": token_version, "chainId": chain_id, "verifyingContract": token}
    message = {
        "from": payer,
        "to": pay_to,
        "value": amount_atomic,
        "validAfter": 0,
        "validBefore": valid_before_s,
        "nonce": "0x" + _word(nonce).hex(),
    }
    return _document(_ASSET_DOMAIN, domain, encoded_type, message)


def token_permit(
    network: Network, *, owner: str, amount_atomic: int, nonce: int, deadline_s: int
) -> tuple[bytes, dict[str, Any]]:
    """Digest and typed data of an EIP-2612 permit, by which Permit2 may move an amount of the network's token."""
    asset = network.asset
    permit = keccak256(
        _type_hash(_EIP2612_PERMIT)
        + address_word(owner)
        + address_word(network.permit2)
        + _word(amount_atomic)
        + _word(nonce)
        + _word(deadline_s)
    )
    message = {
        "owner": owner,
        "spender": network.permit2,
        "value": amount_atomic,
        "nonce": nonce,
        "deadline": deadline_s,
    }
    domain = {
        "name": asset.name,
        "version": asset.version,
        "chainId": network.chain_id,
        "verifyingContract": asset.address,
    }
    digest = _digest(_token_domain(network.chain_id, asset.address, asset.name, asset.version), permit)
    return digest, _document(_ASSET_DOMAIN, domain, _EIP2612_PERMIT, message)


def cancel_authorization_digest(
    *, chain_id: int, token: str, token_name: str, token_version: str, payer: str, nonce: int
) -> bytes:
    """The digest of an EIP-3009 `cancelAuthorization`, in the token's own domain."""
    cancel = keccak256(_type_hash(_CANCEL_AUTHORIZATION) + address_word(payer) + _word(nonce))
    return _digest(_token_domain(chain_id, token, token_name, token_version), cancel)


def channel_id(config: ChannelConfig, *, chain_id: int) -> bytes:
    """The 32 bytes that name a channel on its chain."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.asset)
    words = b"".join(map(address_word, parties)) + _word(config.withdraw_delay_s) + _word(config.salt)
    return _digest(_channels_domain(chain_id), keccak256(_type_hash(_CHANNEL_CONFIG) + words))


def voucher_digest(channel: bytes, max_claimable_atomic: int, *, chain_id: int) -> bytes:
    """The digest of a voucher: all that may be claimed from a channel, everything before included."""
    return _digest(_channels_domain(chain_id), keccak256(_type_hash(_VOUCHER) + channel + _word(max_claimable_atomic)))


def voucher_document(channel: bytes, max_claimable_atomic: int, *, chain_id: int) -> dict[str, Any]:
    """The typed data of which `voucher_digest` is the digest."""
    domain = {
        "name": _CHANNELS_NAME,
        "version": _CHANNELS_VERSION,
        "chainId": chain_id,
        "verifyingContract": BATCH_SETTLEMENT,
    }
    message = {"channelId": "0x" + channel.hex(), "maxClaimableAmount": max_claimable_atomic}
    return _document(_ASSET_DOMAIN, domain, _VOUCHER, message)


def deposit_nonce(channel: bytes, salt: int) -> int:
    """The EIP-3009 nonce that binds a deposit to its channel."""
    return int.from_bytes(keccak256(channel + _word(salt)), "big")


def deposit_permit_digest(
    *, chain_id: int, permit2: str, token: str, amount_atomic: int, nonce: int, deadline_s: int, channel: bytes
) -> bytes:
    """The digest of a deposit by Permit2: the witness binds the channel, the spender is the collector."""
    permit = keccak256(
        _type_hash(_PERMIT_DEPOSIT)
        + _token_permissions(token, amount_atomic)
        + address_word(PERMIT2_COLLECTOR)
        + _word(nonce)
        + _word(deadline_s)
        + keccak256(_type_hash("DepositWitness(bytes32 channelId)") + channel)
    )
    return _digest(_permit2_domain(chain_id, permit2), permit)


def deposit_permit_document(
    *, chain_id: int, permit2: str, token: str, amount_atomic: int, nonce: int, deadline_s: int, channel: bytes
) -> dict[str, Any]:
    """The typed data of which `deposit_permit_digest` is the digest."""
    message = {
        "permitted": {"token": token, "amount": amount_atomic},
        "spender": PERMIT2_COLLECTOR,
        "nonce": nonce,
        "deadline": deadline_s,
        "witness": {"channelId": "0x" + channel.hex()},
    }
    domain = {"name": "Permit2", "chainId": chain_id, "verifyingContract": permit2}
    return _document(_PERMIT2_DOMAIN, domain, _PERMIT_DEPOSIT, message)


def _digest(domain: bytes, struct: bytes) -> bytes:
    return keccak256(b"\x19\x01" + domain + struct)


def _token_permissions(token: str, amount_atomic: int) -> bytes:
    return keccak256(_type_hash(_PERMISSIONS) + address_word(token) + _word(amount_atomic))


@lru_cache(maxsize=64)
def _permit2_domain(chain_id: int, permit2: str) -> bytes:
    return keccak256(_type_hash(_PERMIT2_DOMAIN) + _text_hash("Permit2") + _word(chain_id) + address_word(permit2))


@lru_cache(maxsize=64)
def _channels_domain(chain_id: int) -> bytes:
    return _token_domain(chain_id, BATCH_SETTLEMENT, _CHANNELS_NAME, _CHANNELS_VERSION)


@lru_cache(maxsize=64)
def _token_domain(chain_id: int, token: str, name: str, version: str) -> bytes:
    return keccak256(
        _type_hash(_ASSET_DOMAIN) + _text_hash(name) + _text_hash(version) + _word(chain_id) + address_word(token)
    )


@cache
def _type_hash(encoded_type: str) -> bytes:
    return keccak256(encoded_type.encode("ascii"))


def _text_hash(text: str) -> bytes:
    return keccak256(text.encode("utf-8"))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
