"""Approvals that come with a payment: the payer signs them, the facilitator sends them and pays the gas.

x402 extension `erc20ApprovalGasSponsoring` 1: the payment contains a raw signed transaction that calls
`approve(Permit2, …)` on the token. The facilitator sends it just before the settlement, and gives the payer the
gas money that is missing. Reason codes are those of the official facilitator 2.25.
"""

from __future__ import annotations

from dataclasses import dataclass

import rlp  # type: ignore[import-untyped]  # rlp has no py.typed
from eth_abi.exceptions import DecodingError
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.address import is_hex_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]  # rlp has no py.typed

from opengradient_devnet.chain.chain import Chain, ChainTimeout, KeyHolder, RpcError
from opengradient_devnet.contracts import PERMIT2, contract
from opengradient_devnet.facilitator.payments import SponsoredApproval, decimal
from opengradient_devnet.facilitator.refusals import PaymentInvalid, require, same_address

# Who signs an absurd gas price would be given it, and keep the change: this much is enough for any approval.
MAX_SPONSORED_WEI = 10**16
_DYNAMIC_FEE_TYPE = b"\x02"  # EIP-1559
_UNSIGNED_FIELDS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalTransaction:
    """The signed transaction inside an approval. `most_wei` is the gas money that its sender must have."""

    raw: str
    sender: str
    to: str
    data: bytes
    chain_id: int
    nonce: int
    most_wei: int


def read_transaction(raw: str) -> ApprovalTransaction:
    """Decode a raw EIP-1559 transaction, the only type that is sponsored; raises `PaymentInvalid`.

    By hand, because py-evm, which could do it, must not be loaded beside another engine.
    """
    try:
        encoded = bytes.fromhex(raw.removeprefix("0x"))
        fields = rlp.decode(encoded[1:])
        if encoded[:1] != _DYNAMIC_FEE_TYPE:
            raise ValueError(f"its type is 0x{encoded[:1].hex()}, not 0x{_DYNAMIC_FEE_TYPE.hex()}")
        chain_id, nonce, _tip, max_fee_wei, gas, to, value, data, _access, y_parity, r, s = fields
    except (RLPException, ValueError, TypeError) as exc:
        raise PaymentInvalid("erc20_approval_tx_parse_failed", f"not a signed EIP-1559 transaction: {exc}") from exc
    try:
        signature = Signature(vrs=(_number(y_parity), _number(r), _number(s)))
        signed = keccak(_DYNAMIC_FEE_TYPE + rlp.encode(fields[:_UNSIGNED_FIELDS]))
        sender = signature.recover_public_key_from_msg_hash(signed).to_checksum_address()
    except (BadSignature, ValidationError, ValueError, TypeError) as exc:
        raise PaymentInvalid("erc20_approval_tx_invalid_signature", str(exc)) from exc
    return ApprovalTransaction(
        raw="0x" + encoded.hex(),
        sender=sender,
        to="0x" + bytes(to).hex(),
        data=bytes(data),
        chain_id=_number(chain_id),
        nonce=_number(nonce),
        most_wei=_number(gas) * _number(max_fee_wei) + _number(value),
    )


def _number(field: object) -> int:
    # A list where a number belongs would otherwise be read as bytes by `bytes(…)`.
    if not isinstance(field, bytes):
        raise PaymentInvalid("erc20_approval_tx_parse_failed", "a number of the transaction is a list")
    return int.from_bytes(field, "big")


def check_approval(
    chain: Chain, approval: SponsoredApproval, *, payer: str, asset: str, amount_atomic: int
) -> ApprovalTransaction:
    """The transaction of an approval that will let Permit2 take `amount_atomic`; raises `PaymentInvalid`."""
    formed = all(map(is_hex_address, (approval.owner, approval.asset, approval.spender)))
    require(formed and decimal(approval.amount) is not None, "invalid_erc20_approval_extension_format")
    require(same_address(approval.owner, payer), "erc20_approval_from_mismatch")
    require(same_address(approval.asset, asset), "erc20_approval_asset_mismatch")
    require(same_address(approval.spender, PERMIT2), "erc20_approval_spender_not_permit2")
    transaction = read_transaction(approval.signed_transaction)
    require(same_address(transaction.sender, payer), "erc20_approval_tx_signer_mismatch")
    require(same_address(transaction.to, asset), "erc20_approval_tx_wrong_target")
    approved_atomic = _approved_atomic(transaction.data)
    require(approved_atomic >= amount_atomic, "permit2_allowance_required", "the approval is below the payment")
    require(
        transaction.most_wei <= MAX_SPONSORED_WEI, "erc20_approval_broadcast_failed", "it asks for too much gas money"
    )
    require(transaction.chain_id == chain.chain_id, "erc20_approval_broadcast_failed", "signed for another chain")
    next_nonce = int(chain.rpc("eth_getTransactionCount", [payer, "pending"]), 16)
    require(transaction.nonce == next_nonce, "erc20_approval_broadcast_failed", f"its nonce is not {next_nonce}")
    return transaction


def _approved_atomic(data: bytes) -> int:
    token = contract("OPG")
    require(data[:4] == token.selector("approve"), "erc20_approval_tx_wrong_selector")
    try:
        arguments = token.decode_call(data)["arguments"]
    except DecodingError as exc:
        raise PaymentInvalid("erc20_approval_tx_invalid_calldata", str(exc)) from exc
    require(same_address(arguments["spender"], PERMIT2), "erc20_approval_tx_wrong_spender")
    approved: int = arguments["value"]
    return approved


def send_approval(chain: Chain, transaction: ApprovalTransaction, *, sponsor: KeyHolder) -> None:
    """Give the payer the gas money that is missing, and send the approval; raises `PaymentInvalid`."""
    missing_wei = transaction.most_wei - chain.balance(transaction.sender)
    try:
        if missing_wei > 0:
            chain.send(sponsor, to=transaction.sender, value=missing_wei)
        receipt = chain.send_raw(transaction.raw)
    except (RpcError, ChainTimeout) as exc:
        raise PaymentInvalid("erc20_approval_broadcast_failed", str(exc)) from exc
    require(receipt["status"] == "0x1", "erc20_approval_tx_failed", f"{receipt['transactionHash']} reverted")
