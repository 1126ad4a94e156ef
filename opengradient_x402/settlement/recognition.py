"""Recognising what a transaction did to an authorization: pure decisions over calldata and logs.

How a settlement shows (design/wire.md, Permit2 on chain): Permit2 emits nothing, so the trace is the token's
`Transfer(payer, payee)` and then the proxy's `Settled()` in one transaction, and the signed permit `(token,
amount, nonce, deadline)`: four words that stand together in the calldata, whoever wraps it or appends to it.
For EIP-3009 the token's `AuthorizationUsed(authorizer, nonce)` names the nonce. Only chain data count; what a
gateway says is not looked at. Does not know how the data were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol

from opengradient_x402.addresses import address_word, checksum_address
from opengradient_x402.chain.questions import Log, Transaction, TransactionReceipt

if TYPE_CHECKING:
    from opengradient_x402.networks import Network
    from opengradient_x402.signer import Authorization

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
_UNGUESSABLE: Final = 2**128
"""A nonce above this is nobody's counter: its word in calldata is no coincidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTerms:
    """What of an authorization the chain can confirm. `spender` is the proxy, or the token for EIP-3009."""

    payer: str
    payee: str
    asset: str
    spender: str
    transfer_method: Literal["permit2", "eip3009"]
    nonce: int
    amount_atomic: int
    signed_at_s: int
    deadline_s: int

    @classmethod
    def of(cls, authorization: Authorization, *, network: Network) -> SignedTerms:
        """What an authorization signed."""
        terms = authorization.terms
        proxy = network.upto_proxy if terms.scheme == "upto" else network.exact_proxy
        return cls(
            payer=authorization.payer,
            payee=terms.pay_to,
            asset=terms.asset,
            spender=terms.asset if terms.transfer_method == "eip3009" else proxy,
            transfer_method=terms.transfer_method,
            nonce=authorization.nonce,
            amount_atomic=authorization.amount_atomic,
            signed_at_s=authorization.signed_at_s,
            deadline_s=authorization.deadline_s,
        )

    @classmethod
    def of_entry(cls, entry: LedgerEntry) -> SignedTerms:
        """What a ledger entry says was signed."""
        return cls(
            payer=entry.payer,
            payee=entry.payee,
            asset=entry.asset,
            spender=entry.spender,
            transfer_method="eip3009" if entry.transfer_method == "eip3009" else "permit2",
            nonce=int(entry.nonce),
            amount_atomic=entry.amount_atomic,
            signed_at_s=entry.signed_at,
            deadline_s=entry.deadline,
        )


class LedgerEntry(Protocol):
    """The fields of the ledger's entry that matter here."""

    @property
    def payer(self) -> str: ...
    @property
    def payee(self) -> str: ...
    @property
    def asset(self) -> str: ...
    @property
    def spender(self) -> str: ...
    @property
    def transfer_method(self) -> str: ...
    @property
    def nonce(self) -> str: ...
    @property
    def amount_atomic(self) -> int: ...
    @property
    def signed_at(self) -> int: ...
    @property
    def deadline(self) -> int: ...


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
    mined: Transaction, done: TransactionReceipt, authorizations: Sequence[SignedTerms]
) -> dict[SignedTerms, SettlementFound]:
    """Which of the Permit2 authorizations a transaction settled, and for how much.

    A transaction may settle several; each is paired with the transfer of the amount that its calldata states,
    or else with the next one that fits.
    """
    if not done.is_success:
        return {}
    transfers = list(_settled_transfers(done, {terms.spender for terms in authorizations}))
    found: dict[SignedTerms, SettlementFound] = {}
    for position, terms in sorted(_positions(mined.input, authorizations), key=lambda pair: pair[0]):
        stated = _stated_amounts(mined.input, position)
        fitting = [log for log in transfers if is_transfer_of(log, terms)]
        if fitting:
            transfer = next((log for log in fitting if _amount(log) in stated), fitting[0])
            transfers.remove(transfer)
            found[terms] = settlement(transfer, terms)
    return found


def transfer_settlements(
    done: TransactionReceipt, authorizations: Sequence[SignedTerms]
) -> dict[SignedTerms, SettlementFound]:
    """Which of the EIP-3009 authorizations a transaction used, and for how much."""
    transfers = list(done.logs) if done.is_success else []
    found: dict[SignedTerms, SettlementFound] = {}
    for terms in authorizations:
        used = next((log for log in done.logs if uses(log, terms)), None)
        fitting = [log for log in transfers if is_transfer_of(log, terms)]
        if used is not None and fitting:
            exact = [log for log in fitting if _amount(log) == terms.amount_atomic]
            # Tokens emit the two events side by side, in either order.
            transfer = min(exact or fitting, key=lambda log: abs(log.log_index - used.log_index))
            transfers.remove(transfer)
            found[terms] = settlement(transfer, terms)
    return found


def diverted_settlement(mined: Transaction, done: TransactionReceipt, terms: SignedTerms) -> SettlementFound | None:
    """The payment to another payee in which a Permit2 nonce was used; None when the transaction is not one."""
    position = mined.input.find(terms.nonce.to_bytes(_WORD, "big")) if done.is_success else -1
    if position < 0 or terms.nonce <= _UNGUESSABLE:
        return None
    outgoing = [
        log
        for log in _settled_transfers(done, {terms.spender})
        if log.address == terms.asset and log.topics[1:2] == (address_topic(terms.payer),)
    ]
    stated = _stated_amounts(mined.input, position)
    transfer = next((log for log in outgoing if _amount(log) in stated), None)
    if transfer is None:
        return None
    return replace(settlement(transfer, terms), payee=checksum_address("0x" + transfer.topics[2][-40:]))


def uses(log: Log, terms: SignedTerms) -> bool:
    """Whether a token's event says that the EIP-3009 authorization was used."""
    topics = (AUTHORIZATION_USED, address_topic(terms.payer), nonce_topic(terms.nonce))
    return log.address == terms.asset and log.topics == topics


def is_transfer_of(log: Log, terms: SignedTerms) -> bool:
    """Whether an event moves the token from the payer to the payee."""
    return (
        log.address == terms.asset
        and log.topics == (TRANSFER, address_topic(terms.payer), address_topic(terms.payee))
        and len(log.data) == _WORD
    )


def invalidates(log: Log, terms: SignedTerms) -> bool:
    """Whether an event says that the payer burned the nonce: Permit2's or, for EIP-3009, the token's."""
    if terms.transfer_method == "eip3009":
        topics = (AUTHORIZATION_CANCELED, address_topic(terms.payer), nonce_topic(terms.nonce))
        return log.address == terms.asset and log.topics == topics
    if len(log.data) != 2 * _WORD or log.topics != (NONCE_INVALIDATION, address_topic(terms.payer)):
        return False
    word, mask = int.from_bytes(log.data[:_WORD], "big"), int.from_bytes(log.data[_WORD:], "big")
    return word == terms.nonce >> 8 and bool(mask >> (terms.nonce & 255) & 1)


def settlement(transfer: Log, terms: SignedTerms) -> SettlementFound:
    """The settlement that a transfer is."""
    return SettlementFound(
        tx_hash=transfer.tx_hash,
        block_number=transfer.block_number,
        block_hash=transfer.block_hash,
        amount_atomic=_amount(transfer),
        payer=terms.payer,
        payee=terms.payee,
        log_index=transfer.log_index,
    )


def address_topic(address: str) -> str:
    """An indexed address, as it stands in a log."""
    return "0x" + address_word(address).hex()


def nonce_topic(nonce: int) -> str:
    """An indexed bytes32 nonce, as it stands in a log."""
    return f"0x{nonce:064x}"


def _settled_transfers(done: TransactionReceipt, spenders: set[str]) -> Iterator[Log]:
    """The transfers that a proxy closed with its `Settled()`; others in the transaction are not payments."""
    pending: list[Log] = []
    for log in sorted(done.logs, key=lambda log: log.log_index):
        if log.topics[:1] == (TRANSFER,):
            pending.append(log)
        elif log.address in spenders and log.topics in ((SETTLED,), (SETTLED_WITH_PERMIT,)):
            yield from pending
            pending.clear()


def _positions(calldata: bytes, authorizations: Iterable[SignedTerms]) -> Iterator[tuple[int, SignedTerms]]:
    """Where the permits of the authorizations stand in the calldata: the offset of their nonce."""
    for terms in authorizations:
        nonce = terms.nonce.to_bytes(_WORD, "big")
        permitted = address_word(terms.asset) + terms.amount_atomic.to_bytes(_WORD, "big")
        start = calldata.find(permitted + nonce + terms.deadline_s.to_bytes(_WORD, "big"))
        if start >= 0:
            yield start + len(permitted), terms
        elif terms.nonce > _UNGUESSABLE and (start := calldata.find(nonce)) >= 0:
            yield start, terms  # a contract that packs its arguments in a way of its own


def _stated_amounts(calldata: bytes, nonce_position: int) -> set[int]:
    """Amounts beside a nonce: before it what was permitted, and behind the deadline what upto takes."""
    before, behind = nonce_position - _WORD, nonce_position + 2 * _WORD
    return {int.from_bytes(calldata[start : start + _WORD], "big") for start in (before, behind) if start >= 0}


def _amount(log: Log) -> int:
    return int.from_bytes(log.data, "big")
