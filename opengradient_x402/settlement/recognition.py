"""Recognising what a transaction did to an authorization: pure decisions over calldata and logs.

How a settlement shows (docs/wire.md, "Permit2 on chain"): Permit2 emits nothing, so the trace is the token's
`Transfer(payer, payee)` and then the proxy's `Settled()` in one transaction, and the signed permit `(token,
amount, nonce, deadline)`: four words that stand together in the calldata, also when another contract
wraps it or appends to it.
For EIP-3009 the token's `AuthorizationUsed(authorizer, nonce)` names the nonce. Only chain data count; what a
gateway says is not looked at. Does not know how the data were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from opengradient_x402.addresses import address_word, checksum_address
from opengradient_x402.chain.questions import Log, Transaction, TransactionReceipt
from opengradient_x402.ledger.authorizations import Authorization

TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""keccak256("Transfer(address,address,uint256)"), ERC-20."""
SETTLED: Final = "0x97088ec3606cfe8cc112180570d03fcde05f9b8e1bfef8e27784eaf5dd5691b6"
"""keccak256("Settled()"), x402 proxies."""
SETTLED_WITH_PERMIT: Final = "0xde5b89d10fc800c459329c382fabfcad0be0ed7e5328e01fae04e507b09ef5d8"
"""keccak256("SettledWithPermit()"), x402 proxies."""
NONCE_INVALIDATION: Final = "0x3704902f963766a4e561bbaab6e6cdc1b1dd12f6e9e99648da8843b3f46b918d"
"""keccak256("UnorderedNonceInvalidation(address,uint256,uint256)"), Permit2."""
AUTHORIZATION_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
"""keccak256("AuthorizationUsed(address,bytes32)"), EIP-3009."""
AUTHORIZATION_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
"""keccak256("AuthorizationCanceled(address,bytes32)"), EIP-3009."""

_WORD: Final = 32
_TRANSFER_TOPICS: Final = 3
_UNGUESSABLE: Final = 2**128
"""Nonces above this are random, not counted up: when calldata has one, that is no coincidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementFound:
    """The transfer that used the authorization. `confirmations` counts its own block as one."""

    tx_hash: str
    block_number: int
    block_hash: str
    amount_atomic: int
    payer: str
    payee: str
    log_index: int
    confirmations: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The payer invalidated the nonce: nothing can be taken any more."""

    tx_hash: str
    block_number: int = field(default=0, compare=False)
    block_hash: str = field(default="", compare=False)
    confirmations: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledElsewhere:
    """The nonce was used in a payment to another payee: the payer's key signed it twice."""

    settlement: SettlementFound


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSettled:
    """The nonce is unused. `is_expired`: it can never be used any more, so nothing was or will be taken."""

    is_expired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexplained:
    """The nonce is used, and the logs that the node has do not show by what: count the amount as spent.

    A node that lags or has no old logs, or a reorganisation under way.
    """


Outcome = SettlementFound | SettledElsewhere | Cancelled | NotSettled | Unexplained


def permit_settlements(
    mined: Transaction, done: TransactionReceipt, authorizations: Sequence[Authorization]
) -> dict[Authorization, SettlementFound]:
    """Which of the Permit2 authorizations a transaction settled, and for how much.

    A transaction may settle several; each is paired with the transfer of the amount that its calldata states,
    or else with the next one that fits.
    """
    if not done.is_success:
        return {}
    spenders = {terms.spender for authorization in authorizations for terms in authorization.signed}
    transfers = list(settled_transfers(done, spenders))
    found: dict[Authorization, SettlementFound] = {}
    for position, authorization in sorted(_positions(mined.input, authorizations), key=itemgetter(0)):
        stated = _stated_amounts(mined.input, position)
        fitting = [log for log in transfers if is_transfer_of(log, authorization)]
        if fitting:
            transfer = next((log for log in fitting if _amount(log) in stated), fitting[0])
            transfers.remove(transfer)
            found[authorization] = settlement(transfer)
    return found


def transfer_settlements(
    done: TransactionReceipt, authorizations: Sequence[Authorization]
) -> dict[Authorization, SettlementFound]:
    """Which of the EIP-3009 authorizations a transaction used, and for how much."""
    transfers = list(done.logs) if done.is_success else []
    found: dict[Authorization, SettlementFound] = {}
    for authorization in authorizations:
        used = next((log for log in done.logs if uses(log, authorization)), None)
        fitting = [log for log in transfers if is_transfer_of(log, authorization)]
        if used is not None and fitting:
            amounts = {terms.amount_atomic for terms in authorization.signed}
            exact = [log for log in fitting if _amount(log) in amounts]
            # Tokens emit the two events side by side, in either order.
            transfer = min(exact or fitting, key=lambda log: abs(log.log_index - used.log_index))
            transfers.remove(transfer)
            found[authorization] = settlement(transfer)
    return found


def diverted_settlement(
    mined: Transaction, done: TransactionReceipt, authorization: Authorization
) -> SettlementFound | None:
    """The payment to another payee in which a Permit2 nonce was used; None when the transaction is not one."""
    position = mined.input.find(authorization.nonce.to_bytes(_WORD, "big")) if done.is_success else -1
    if position < 0 or authorization.nonce <= _UNGUESSABLE:
        return None
    outgoing = [
        log
        for log in settled_transfers(done, {terms.spender for terms in authorization.signed})
        if log.address == authorization.asset and log.topics[1:2] == (address_topic(authorization.payer),)
    ]
    stated = _stated_amounts(mined.input, position)
    transfer = next((log for log in outgoing if _amount(log) in stated), None)
    return None if transfer is None else settlement(transfer)


def uses(log: Log, authorization: Authorization) -> bool:
    """Whether a token's event says that the EIP-3009 authorization was used."""
    topics = (AUTHORIZATION_USED, address_topic(authorization.payer), nonce_topic(authorization.nonce))
    return log.address == authorization.asset and log.topics == topics


def is_transfer_of(log: Log, authorization: Authorization) -> bool:
    """Whether an event moves the token from the payer to a payee that was signed for."""
    return (
        log.address == authorization.asset
        and log.topics[:2] == (TRANSFER, address_topic(authorization.payer))
        and log.topics[2:] in [(address_topic(payee),) for payee in authorization.payees]
        and len(log.data) == _WORD
    )


def invalidates(log: Log, authorization: Authorization) -> bool:
    """Whether an event says that the payer burned the nonce: Permit2's or, for EIP-3009, the token's."""
    payer, nonce = address_topic(authorization.payer), authorization.nonce
    if authorization.transfer_method == "eip3009":
        topics = (AUTHORIZATION_CANCELED, payer, nonce_topic(nonce))
        return log.address == authorization.asset and log.topics == topics
    if len(log.data) != 2 * _WORD or log.topics != (NONCE_INVALIDATION, payer):
        return False
    word, mask = int.from_bytes(log.data[:_WORD], "big"), int.from_bytes(log.data[_WORD:], "big")
    return word == nonce >> 8 and bool(mask >> (nonce & 255) & 1)


def settlement(transfer: Log) -> SettlementFound:
    """The settlement that a transfer is."""
    return SettlementFound(
        tx_hash=transfer.tx_hash,
        block_number=transfer.block_number,
        block_hash=transfer.block_hash,
        amount_atomic=_amount(transfer),
        payer=_address(transfer.topics[1]),
        payee=_address(transfer.topics[2]),
        log_index=transfer.log_index,
    )


def address_topic(address: str) -> str:
    """An indexed address, as it stands in a log."""
    return "0x" + address_word(address).hex()


def nonce_topic(nonce: int) -> str:
    """An indexed bytes32 nonce, as it stands in a log."""
    return f"0x{nonce:064x}"


def settled_transfers(done: TransactionReceipt, spenders: set[str]) -> Iterator[Log]:
    """The transfers that a proxy closed with its `Settled()`; others in the transaction are not payments."""
    pending: list[Log] = []
    for log in sorted(done.logs, key=lambda log: log.log_index):
        if log.topics[:1] == (TRANSFER,) and len(log.topics) == _TRANSFER_TOPICS and len(log.data) == _WORD:
            pending.append(log)
        elif log.address in spenders and log.topics in ((SETTLED,), (SETTLED_WITH_PERMIT,)):
            yield from pending
            pending.clear()


def _positions(calldata: bytes, authorizations: Iterable[Authorization]) -> Iterator[tuple[int, Authorization]]:
    """Where the permits of the authorizations stand in the calldata: the offset of their nonce."""
    for authorization in authorizations:
        nonce = authorization.nonce.to_bytes(_WORD, "big")
        for terms in authorization.signed:
            permitted = address_word(terms.asset) + terms.amount_atomic.to_bytes(_WORD, "big")
            start = calldata.find(permitted + nonce + terms.deadline.to_bytes(_WORD, "big"))
            if start >= 0:
                yield start + len(permitted), authorization
                break
        else:
            if authorization.nonce > _UNGUESSABLE and (start := calldata.find(nonce)) >= 0:
                yield start, authorization  # a contract that packs its arguments in a way of its own


def _stated_amounts(calldata: bytes, nonce_position: int) -> set[int]:
    """Amounts beside a nonce: before it what was permitted, and behind the deadline what upto takes."""
    before, behind = nonce_position - _WORD, nonce_position + 2 * _WORD
    return {int.from_bytes(calldata[start : start + _WORD], "big") for start in (before, behind) if start >= 0}


def _address(topic: str) -> str:
    return checksum_address("0x" + topic[-40:])


def _amount(log: Log) -> int:
    return int.from_bytes(log.data, "big")
