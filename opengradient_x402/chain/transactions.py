"""EIP-1559 transactions: from a call to signed bytes, with any `Signer`, and to a mined transaction.

The key stays with the signer, which signs a digest. Does not know what the calls mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opengradient_x402.addresses import keccak256
from opengradient_x402.chain.questions import Question, RpcRequest, native_balance, receipt
from opengradient_x402.effects import Sleep
from opengradient_x402.errors import ChainUnavailable, InsufficientFunds, NotPaid, RpcError
from opengradient_x402.money import format_amount
from opengradient_x402.networks import Network
from opengradient_x402.signer import Signer

_TYPE: Final = b"\x02"  # EIP-1559
_RECEIPT_TIMEOUT_S: Final = 90.0
_FIRST_LOOK_S: Final = 0.05
_LONGEST_LOOK_S: Final = 2.0

RlpItem = bytes | int | list["RlpItem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedTransaction:
    """A call of a contract. Fees are wei per gas; `nonce` is the account's transaction count."""

    chain_id: int
    nonce: int
    max_priority_fee_wei: int
    max_fee_wei: int
    gas: int
    to: str
    data: bytes
    value_wei: int = 0

    @property
    def max_cost_wei(self) -> int:
        """The most that mining it can cost."""
        return self.gas * self.max_fee_wei + self.value_wei


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """Bytes for `eth_sendRawTransaction`, and the hash under which the chain will know them."""

    raw: bytes
    tx_hash: str


def sign_transaction(unsigned: UnsignedTransaction, *, signer: Signer) -> SignedTransaction:
    """Sign a transaction (EIP-1559, EIP-2718)."""
    fields: list[RlpItem] = [
        unsigned.chain_id,
        unsigned.nonce,
        unsigned.max_priority_fee_wei,
        unsigned.max_fee_wei,
        unsigned.gas,
        bytes.fromhex(unsigned.to[2:]),
        unsigned.value_wei,
        unsigned.data,
        [],
    ]
    signature = signer.sign_digest(keccak256(_TYPE + rlp_encode(fields)))
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    raw = _TYPE + rlp_encode([*fields, signature[64] - 27, r, s])
    return SignedTransaction(raw=raw, tx_hash="0x" + keccak256(raw).hex())


def rlp_encode(item: RlpItem) -> bytes:
    """Recursive Length Prefix (Ethereum Yellow Paper, appendix B); ints are big-endian without zeros."""
    if isinstance(item, list):
        payload = b"".join(rlp_encode(entry) for entry in item)
        return _prefix(len(payload), 0xC0) + payload
    content = item.to_bytes((item.bit_length() + 7) // 8, "big") if isinstance(item, int) else item
    if len(content) == 1 and content[0] < 0x80:
        return content
    return _prefix(len(content), 0x80) + content


def _prefix(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([offset + 55 + len(size)]) + size


def send_transaction(network: Network, signer: Signer, *, to: str, data: bytes, what: str) -> Question[str]:
    """Send one transaction and wait until it is mined; its hash. `what` names it in errors.

    Raises InsufficientFunds when there is no gas for it, NotPaid when it reverts, ChainUnavailable.
    """
    unsigned = yield from _prepared(network, signer.address, to, data, what)
    signed = sign_transaction(unsigned, signer=signer)
    try:
        yield RpcRequest("eth_sendRawTransaction", ("0x" + signed.raw.hex(),))
    except RpcError as exc:
        # Sending is repeated when a connection breaks, and then the node may have it from the first time.
        if "already known" not in str(exc) and "known transaction" not in str(exc):
            raise
    waited_s, pause_s = 0.0, _FIRST_LOOK_S
    while waited_s < _RECEIPT_TIMEOUT_S:
        done = yield from receipt(signed.tx_hash)
        if done is not None:
            if done.is_success:
                return signed.tx_hash
            raise NotPaid(
                f"{what} was mined and reverted (transaction {signed.tx_hash}). Gas was spent, no tokens moved. "
                "Look at it in the explorer; the token may be paused.",
                kind="chain",
            )
        yield Sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _LONGEST_LOOK_S)
    raise ChainUnavailable(
        f"{what} was sent as {signed.tx_hash} and is not mined after {_RECEIPT_TIMEOUT_S:.0f} s. No tokens moved. "
        "It may still be mined: look it up before you send it again."
    )


def _prepared(network: Network, sender: str, to: str, data: bytes, what: str) -> Question[UnsignedTransaction]:
    balance_wei = yield from native_balance(sender)
    if balance_wei == 0:
        raise _no_gas(network, sender, what, "it holds none")
    unsigned = yield from prepare_transaction(network, sender, to=to, data=data)
    if balance_wei < unsigned.max_cost_wei:
        needed, held = format_amount(unsigned.max_cost_wei), format_amount(balance_wei)
        raise _no_gas(network, sender, what, f"it holds {held} and up to {needed} may be needed")
    return unsigned


def prepare_transaction(network: Network, sender: str, *, to: str, data: bytes) -> Question[UnsignedTransaction]:
    """A transaction with the sender's next nonce and today's fees; whether the sender can pay them is not asked."""
    call = {"from": sender, "to": to, "data": "0x" + data.hex()}
    gas = int((yield RpcRequest("eth_estimateGas", (call,))), 16)
    price_wei = int((yield RpcRequest("eth_gasPrice", ())), 16)
    try:
        tip_wei = int((yield RpcRequest("eth_maxPriorityFeePerGas", ())), 16)
    except RpcError:  # not every node has the method; the gas price holds base fee and tip
        tip_wei = price_wei
    return UnsignedTransaction(
        chain_id=network.chain_id,
        nonce=int((yield RpcRequest("eth_getTransactionCount", (sender, "pending"))), 16),
        max_priority_fee_wei=min(tip_wei, price_wei),
        max_fee_wei=2 * price_wei,  # the base fee may rise by an eighth per block
        gas=gas + gas // 5,
        to=to,
        data=data,
    )


def _no_gas(network: Network, sender: str, what: str, reason: str) -> InsufficientFunds:
    return InsufficientFunds(
        f"{what} needs ETH on {network.name} for gas, and {reason}. Nothing was sent. "
        f"Send a little ETH to {sender} (payments themselves need none)."
    )
