"""EIP-1559 transactions: from a call to signed bytes, with any `Signer`, and to a mined transaction.

eth-account builds them; it is imported when one is signed. The key stays with the signer, which signs a digest.
Once a transaction was sent, only a mined receipt or the time limit ends the wait: nodes lag, and answer badly now and
then. Does not know what the calls mean.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Final

from opengradient_x402.addresses import keccak256
from opengradient_x402.chain.questions import Question, RpcRequest, native_balance, quantity, receipt
from opengradient_x402.effects import Sleep
from opengradient_x402.errors import ChainUnavailable, InsufficientFunds, NotPaid, RpcError
from opengradient_x402.keys.signer import Signer
from opengradient_x402.money import format_amount
from opengradient_x402.networks import Network

_RECEIPT_TIMEOUT_S: Final = 90.0
_DOUBTFUL_TIMEOUT_S: Final = 30.0
"""Seconds to wait for a transaction that no node has accepted yet."""
_FIRST_LOOK_S: Final = 0.05
_LONGEST_LOOK_S: Final = 2.0
_MOST_NONCES: Final = 4
_USUAL_GAS: Final = 80_000
"""More than an approval or a cancellation takes: used where a node gives no estimate for an empty wallet."""
_WEI_PER_GWEI: Final = 10**9

# What nodes say. The words of geth (core/error.go, txpool/errors.go) are also those of OP-stack nodes, erigon and reth.
# Others say "lack of funds" (reth's EVM), "upfront cost" (Besu), OldNonce and InsufficientFunds (Nethermind).
_KNOWN: Final = ("already known", "known transaction", "alreadyknown", "already imported")
_NONCE_TAKEN: Final = (
    "nonce too low",
    "nonce is too low",
    "oldnonce",
    "nonce has already been used",
    "replacement transaction underpriced",
    "replacementnotallowed",
    "could not replace existing",
    "transaction with same nonce",
)
_NO_FUNDS: Final = (
    "insufficient funds",
    "insufficientfunds",
    "insufficient balance",
    "gas required exceeds allowance",
    "lack of funds",
    "enough funds",
    "enough balance",
    "upfront cost",
    "up-front cost",
)
_OVERSHOT: Final = re.compile(r"overshot (\d+)")
_HAVE_AND_WANT: Final = (
    re.compile(r"(?P<have>\d+)\W+(?:want|tx cost|cumulative cost|for max fee)\W+(?P<want>\d+)"),
    re.compile(r"(?:required|upfront cost is:?) (?P<want>\d+)\D+(?P<have>\d+)"),
)


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
        """The most that mining it can cost on this chain; a rollup adds what its own chain below takes."""
        return self.gas * self.max_fee_wei + self.value_wei


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """Bytes for `eth_sendRawTransaction`, and the hash under which the chain will know them."""

    raw: bytes
    tx_hash: str


def sign_transaction(unsigned: UnsignedTransaction, *, signer: Signer) -> SignedTransaction:
    """Sign a transaction (EIP-1559, EIP-2718)."""
    from eth_account.typed_transactions.typed_transaction import TypedTransaction

    fields: dict[str, Any] = {
        "type": 2,
        "chainId": unsigned.chain_id,
        "nonce": unsigned.nonce,
        "maxPriorityFeePerGas": unsigned.max_priority_fee_wei,
        "maxFeePerGas": unsigned.max_fee_wei,
        "gas": unsigned.gas,
        "to": unsigned.to,
        "value": unsigned.value_wei,
        "data": unsigned.data,
    }
    signature = signer.sign_digest(bytes(TypedTransaction.from_dict(fields).hash()))
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    signed = TypedTransaction.from_dict(fields | {"v": signature[64] - 27, "r": r, "s": s})
    raw = bytes(signed.encode())
    return SignedTransaction(raw=raw, tx_hash="0x" + keccak256(raw).hex())


def send_transaction(network: Network, signer: Signer, *, to: str, data: bytes, what: str) -> Question[str]:
    """Send one transaction and wait until it is mined; its hash. `what` names it in errors.

    Raises InsufficientFunds when there is no gas for it, NotPaid when it reverts, ChainUnavailable when the node
    refuses it, or when it is not mined in time: then the error holds the hash.
    """
    pause_s = _FIRST_LOOK_S
    for _ in range(_MOST_NONCES):
        unsigned = yield from _prepared(network, signer.address, to, data, what)
        signed = sign_transaction(unsigned, signer=signer)
        timeout_s = yield from _sent(signed, unsigned, network, signer.address, what)
        if timeout_s is not None:
            return (yield from _mined(signed.tx_hash, what, timeout_s))
        yield Sleep(pause_s)  # the nonce was taken by another transaction: ask for the next one
        pause_s = min(4 * pause_s, _LONGEST_LOOK_S)
    raise ChainUnavailable(
        f"{what} was not sent: the node refused {_MOST_NONCES} nonces in a row as used (the last transaction was "
        f"{signed.tx_hash}). No tokens moved. Wait until the other transactions of {signer.address} are mined, and "
        "try again."
    )


def _sent(
    signed: SignedTransaction, unsigned: UnsignedTransaction, network: Network, sender: str, what: str
) -> Question[float | None]:
    """How long to wait for a transaction after sending it; None when its nonce belongs to another one."""
    try:
        yield RpcRequest("eth_sendRawTransaction", ("0x" + signed.raw.hex(),))
    except RpcError as exc:
        # Sending is repeated when a connection breaks, and then the node may have it from the first time.
        if _says(exc, _KNOWN):
            return _RECEIPT_TIMEOUT_S
        if _says(exc, _NO_FUNDS):
            raise _no_gas(
                network, sender, what, "the node says that it holds too little", _missing(exc, unsigned)
            ) from exc
        if _says(exc, _NONCE_TAKEN):
            return _RECEIPT_TIMEOUT_S if (yield from _is_known(signed.tx_hash)) else None
        if exc.code is not None and exc.code < 0:  # JSON-RPC's own codes: the node read it, and did not take it
            raise RpcError(
                f"{what} was refused (transaction {signed.tx_hash}): {exc.message} No tokens moved, no gas was spent.",
                code=exc.code,
                data=exc.data,
            ) from exc
        return _DOUBTFUL_TIMEOUT_S
    except ChainUnavailable:
        return _DOUBTFUL_TIMEOUT_S
    return _RECEIPT_TIMEOUT_S


def _is_known(tx_hash: str) -> Question[bool]:
    try:
        return (yield RpcRequest("eth_getTransactionByHash", (tx_hash,))) is not None
    except ChainUnavailable:
        return False


def _mined(tx_hash: str, what: str, timeout_s: float) -> Question[str]:
    """The hash, when the chain has the transaction. Bad answers of the node are passed over until the time is up."""
    waited_s, pause_s, until = 0.0, _FIRST_LOOK_S, time.monotonic() + timeout_s
    problem = ""
    while waited_s < timeout_s and time.monotonic() < until:
        try:
            done = yield from receipt(tx_hash)
        except ChainUnavailable as exc:
            done, problem = None, f" The node's last answer: {exc.message}"
        if done is not None and done.is_success:
            return tx_hash
        if done is not None:
            raise NotPaid(
                f"{what} was mined and reverted (transaction {tx_hash}). Gas was spent, no tokens moved. "
                "Look at it in the explorer; the token may be paused.",
                kind="chain",
            )
        yield Sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _LONGEST_LOOK_S)
    if timeout_s == _DOUBTFUL_TIMEOUT_S:
        raise ChainUnavailable(
            f"{what} may have been sent as {tx_hash} (the node's answer was lost), and is not mined after "
            f"{timeout_s:.0f} s. As far as the node shows, no tokens moved. Look it up before you send it again."
            f"{problem}"
        )
    raise ChainUnavailable(
        f"{what} was sent as {tx_hash} and is not mined after {timeout_s:.0f} s. As far as the node shows, no tokens "
        f"moved. It may still be mined: look it up before you send it again.{problem}"
    )


def _prepared(network: Network, sender: str, to: str, data: bytes, what: str) -> Question[UnsignedTransaction]:
    balance_wei = yield from native_balance(sender)
    try:
        unsigned = yield from prepare_transaction(network, sender, to=to, data=data)
    except RpcError as exc:
        if balance_wei and not _says(exc, _NO_FUNDS):
            raise
        unsigned = yield from prepare_transaction(network, sender, to=to, data=data, gas=_USUAL_GAS)
        missing_wei = max(unsigned.max_cost_wei - balance_wei, _missing(exc, unsigned))
        reason = f"it holds {_ether(balance_wei)}, too little to try it" if balance_wei else "it holds none"
        raise _no_gas(network, sender, what, reason, missing_wei) from exc
    if balance_wei < unsigned.max_cost_wei:
        needed, held = _ether(unsigned.max_cost_wei), _ether(balance_wei)
        reason = f"it holds {held} and up to {needed} may be needed" if balance_wei else "it holds none"
        raise _no_gas(network, sender, what, reason, unsigned.max_cost_wei - balance_wei)
    return unsigned


def prepare_transaction(
    network: Network, sender: str, *, to: str, data: bytes, gas: int | None = None
) -> Question[UnsignedTransaction]:
    """A transaction with the sender's next nonce and today's fees; whether the sender can pay them is not asked.

    `gas` None has the node estimate it.
    """
    if gas is None:
        call = {"from": sender, "to": to, "data": "0x" + data.hex()}
        estimate = quantity((yield RpcRequest("eth_estimateGas", (call,))))
        gas = estimate + estimate // 5
    price_wei = quantity((yield RpcRequest("eth_gasPrice", ())))
    try:
        tip_wei = quantity((yield RpcRequest("eth_maxPriorityFeePerGas", ())))
    except RpcError:  # not every node has the method; the gas price holds base fee and tip
        tip_wei = price_wei
    return UnsignedTransaction(
        chain_id=network.chain_id,
        nonce=quantity((yield RpcRequest("eth_getTransactionCount", (sender, "pending")))),
        max_priority_fee_wei=min(tip_wei, price_wei),
        max_fee_wei=2 * price_wei,  # the base fee may rise by an eighth per block
        gas=gas,
        to=to,
        data=data,
    )


def _says(exc: RpcError, words: tuple[str, ...]) -> bool:
    said = exc.message.casefold()
    return any(word in said for word in words)


def _missing(exc: RpcError, unsigned: UnsignedTransaction) -> int:
    """The wei that are missing for gas: as the node says, or else what the transaction costs.

    A rollup also takes the fee of the chain below, which no estimate of gas holds.
    """
    if (overshot := _OVERSHOT.search(exc.message)) is not None:
        return int(overshot[1])
    for pattern in _HAVE_AND_WANT:
        if (both := pattern.search(exc.message.casefold())) is not None:
            return max(0, int(both["want"]) - int(both["have"]))
    return unsigned.max_cost_wei


def _ether(wei: int) -> str:
    return format_amount(wei, decimals=18)


def _no_gas(network: Network, sender: str, what: str, reason: str, missing_wei: int) -> InsufficientFunds:
    shown = _ether(-(-max(missing_wei, 1) // _WEI_PER_GWEI) * _WEI_PER_GWEI)
    return InsufficientFunds(
        f"{what} needs ETH on {network.name} for gas, and {reason}. Nothing was sent. "
        f"Send a little ETH to {sender}: at least {shown} ETH (payments themselves need none)."
    )
