"""Which payments of a wallet the chain shows, and a ledger does not have. Only read when somebody asks for it.

The chain is read first, and the ledger after it: an authorization is in its ledger before its signature leaves, so a
payment that the chain shows by then is missing for good. The log scan has the windows of `logs`; of the transactions
that it finds, those that the ledger does not explain are read, the newest first, and only so many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from opengradient_x402.chain.questions import (
    Log,
    Question,
    TransactionReceipt,
    block,
    block_before,
    logs,
    receipt,
    transaction,
)
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.upkeep import Known
from opengradient_x402.networks import Network
from opengradient_x402.settlement.outgoing import deposits_in, settled_in
from opengradient_x402.settlement.recognition import (
    TRANSFER,
    address_topic,
    permit_settlements,
    settlement,
    transfer_settlements,
)

_MOST_TRANSACTIONS: Final = 500
"""How many transactions are read: each takes one request to the node, or two."""
_MOST_BLOCKS: Final = 10_000_000
"""More than any chain makes in a day: a node that says so would be asked without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrecorded:
    """Payments on chain that a ledger does not have. A deposit into a channel counts with all of its amount."""

    count: int
    amount_atomic: int
    newest_tx_hash: str | None = None
    ledger_begins_later: bool = False
    """Whether the ledger has nothing of the wallet from before the first of these payments."""
    is_whole: bool = True
    """Whether all transactions were read; there may be more payments if not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """The transfers of a wallet, oldest first, from the block of `since` (Unix seconds) on."""

    since: int
    logs: list[Log]


def transfers_since(time_s: int, *, payer: str, network: Network) -> Question[Transfers]:
    """The wallet's transfers of the network's token since then, or a little earlier. Raises ChainUnavailable."""
    head = yield from block()
    start = yield from block_before(time_s, head=head)
    if head.number - start > _MOST_BLOCKS:
        raise ChainUnavailable(
            f"The node shows {head.number - start} blocks since the time that was asked about, which no chain makes. "
            "The chain was not changed by asking. Check `rpc_url`, or ask another node."
        )
    first = yield from block(start)
    topics = [TRANSFER, address_topic(payer)]
    found = yield from logs(network.asset.address, topics, from_block=start, to_block=head.number)
    # Anybody can transfer nothing in the name of a wallet.
    return Transfers(since=min(time_s, first.timestamp_s), logs=[log for log in found if any(log.data)])


def unrecorded(transfers: Sequence[Log], known: Known, *, payer: str, network: Network) -> Question[Unrecorded]:
    """Which of the transfers are payments that the ledger does not have. Raises ChainUnavailable."""
    left = Counter(log.tx_hash for log in transfers)
    explained = Counter(entry.tx_hash for entry in known.authorizations if entry.status == "settled")
    order = dict.fromkeys(log.tx_hash for log in reversed(transfers))
    unclear = [tx_hash for tx_hash in order if left[tx_hash] > explained[tx_hash]]
    found: list[tuple[TransactionReceipt, list[int]]] = []
    is_whole = len(unclear) <= _MOST_TRANSACTIONS
    for tx_hash in unclear[:_MOST_TRANSACTIONS]:
        done = yield from receipt(tx_hash)
        amounts = [] if done is None else (yield from _unknown_in(done, known, payer, network))
        if done is None or amounts is None:
            is_whole = False
        elif amounts:
            found.append((done, amounts))
    if not found:
        return Unrecorded(count=0, amount_atomic=0, is_whole=is_whole)
    return Unrecorded(
        count=sum(len(amounts) for _, amounts in found),
        amount_atomic=sum(sum(amounts) for _, amounts in found),
        newest_tx_hash=found[0][0].tx_hash,
        ledger_begins_later=(yield from _begins_later(known, found[-1][0])),
        is_whole=is_whole,
    )


def _begins_later(known: Known, first: TransactionReceipt) -> Question[bool]:
    if known.first_signed_at is None:
        return True
    return known.first_signed_at > (yield from block(first.block_number)).timestamp_s


def _unknown_in(done: TransactionReceipt, known: Known, payer: str, network: Network) -> Question[list[int] | None]:
    """The amounts of the payments in a transaction that the ledger does not have, in atomic units.

    None when the node, which has its receipt, does not have the transaction.
    """
    if not done.is_success:
        return []
    paid_in, deposits = deposits_in(done, payer, network)
    amounts = [move.amount_atomic for move in deposits if move.channel_id not in known.channels]
    settled = [log for log in settled_in(done, payer, network) if log not in paid_in]
    if settled:
        places = yield from _explained_in(done, known.authorizations)
        if places is None:
            return None
        amounts += [settlement(log).amount_atomic for log in settled if log.log_index not in places]
    return amounts


def _explained_in(
    done: TransactionReceipt, authorizations: Sequence[Authorization]
) -> Question[Collection[int] | None]:
    """The transfers in a transaction that settle one of these authorizations: the places of their logs.

    Also of those that nobody has looked for since they were signed, that were taken for expired, or whose block of
    then may be gone. None when the node does not have the transaction.
    """
    possible = [entry for entry in authorizations if entry.tx_hash in (None, done.tx_hash) or not entry.is_final]
    permits = [entry for entry in possible if entry.transfer_method == "permit2"]
    found = transfer_settlements(done, [entry for entry in possible if entry.transfer_method == "eip3009"])
    if permits:
        mined = yield from transaction(done.tx_hash)
        if mined is None:
            return None
        found |= permit_settlements(mined, done, permits)
    return {one.log_index for one in found.values()}
