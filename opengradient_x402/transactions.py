"""EIP-1559 transactions: from fields to signed bytes, with any `Signer`.

Pure. Does not choose fees or nonces and sends nothing. The key stays with the signer, which signs a digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from opengradient_x402.keccak import keccak256
from opengradient_x402.signer import Signer

_TYPE: bytes = b"\x02"  # EIP-1559

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
