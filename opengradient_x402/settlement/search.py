"""What became of authorizations on chain: asks for what `recognition` needs to decide, in as few scans as it can.

First the nonces, together with their block: an unused one needs no search. Then one log scan per payer, token and
method for all that are used, in bounded windows from the signing time to the last deadline. What was found counts
only in a view that has its block. Does not know the ledger, and writes nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, assert_never

from opengradient_x402.chain.questions import (
    Block,
    Log,
    Question,
    block,
    block_before,
    logs,
    receipt,
    transaction,
)
from opengradient_x402.chain.views import Nonce, Place, confirmations, nonces_at_one_block
from opengradient_x402.errors import RpcError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.networks import Network
from opengradient_x402.settlement.recognition import (
    AUTHORIZATION_CANCELED,
    AUTHORIZATION_USED,
    NONCE_INVALIDATION,
    TRANSFER,
    Cancelled,
    NotSettled,
    Outcome,
    SettledElsewhere,
    SettlementFound,
    Unexplained,
    address_topic,
    diverted_settlement,
    invalidates,
    nonce_topic,
    permit_settlements,
    transfer_settlements,
)

__all__ = [
    "Cancelled",
    "NotSettled",
    "Outcome",
    "SettledElsewhere",
    "SettlementFound",
    "Unexplained",
    "find_settlements",
    "settled_nothing_of",
]

_log = logging.getLogger(__name__)
CLOCK_MARGIN_S: Final = 900
"""Seconds that the signing clock may be ahead of the chain's: the scan starts this much earlier."""
_LONGEST_MARGIN_S: Final = 6 * 3600
"""How much earlier a used nonce is looked for that nothing explains: a policy may allow a clock further ahead."""
EXPIRY_MARGIN_S: Final = 30
"""Seconds after the deadline until an authorization counts as expired: no reorganisation changes that."""
_BLOCKS_OF_SLACK: Final = 64
"""Blocks by which `block_before` may be off."""
_NONCES_PER_QUERY: Final = 100


def find_settlements(
    authorizations: Iterable[Authorization], *, network: Network, needed: int | None = None
) -> Question[dict[Authorization, Outcome]]:
    """What became of many authorizations of one network; `needed` confirmations make a settlement final.

    An authorization expires only by one block that is later than its last deadline and shows its nonce unused.
    Raises ChainUnavailable (RpcError) when the node does not answer.
    """
    outcomes: dict[Authorization, Outcome] = {}
    nonces = {authorization: nonce_of(authorization, network) for authorization in authorizations}
    views = yield from nonces_at_one_block(list(nonces.values()))
    shown = {nonce: view for view in views for nonce in view.used}
    used: defaultdict[tuple[str, str, str], list[Authorization]] = defaultdict(list)
    for authorization, nonce in nonces.items():
        view = shown[nonce]
        if view.used[nonce]:
            used[authorization.payer, authorization.asset, authorization.transfer_method].append(authorization)
        else:
            is_over = view.timestamp_s > authorization.deadline + EXPIRY_MARGIN_S
            outcomes[authorization] = NotSettled(is_expired=is_over)
    if used:
        found: dict[Authorization, Outcome] = {}
        head = yield from block()
        for group in used.values():
            group.sort(key=lambda authorization: authorization.signed_at)
            found.update((yield from _explained_as_far_as_shown(group, head=head, network=network)))
        outcomes |= yield from _confirmed(found, network.confirmations if needed is None else needed)
    return outcomes


def nonce_of(authorization: Authorization, network: Network) -> Nonce:
    """The nonce of an authorization, and the contract that keeps it."""
    if authorization.transfer_method == "permit2":
        return Nonce(network.permit2, authorization.payer, authorization.nonce, is_bitmap=True)
    if authorization.transfer_method == "eip3009":
        return Nonce(authorization.asset, authorization.payer, authorization.nonce, is_bitmap=False)
    assert_never(authorization.transfer_method)


def _explained_as_far_as_shown(
    group: Sequence[Authorization], *, head: Block, network: Network
) -> Question[dict[Authorization, Outcome]]:
    """As `_explained`, oldest first: a node that does not have old events must not hold up what is newer."""
    try:
        return (yield from _explained(group, head=head, network=network))
    except RpcError as exc:
        if exc.code is None:
            raise  # the node does not answer, or nothing that can be read
        problem = exc
    half = -(-len(group) // 2)
    older, newer = group[:half], group[half:]
    _log.warning(
        "What became of %d authorizations (the oldest is %s) is not known, and they stay reserved: %s",
        *(len(older), older[0].id, problem.message),
    )
    found = (yield from _explained_as_far_as_shown(newer, head=head, network=network)) if newer else {}
    return found | {authorization: Unexplained() for authorization in older}


def _explained(
    group: Sequence[Authorization], *, head: Block, network: Network
) -> Question[dict[Authorization, Outcome]]:
    """What used the nonces of one payer, token and method: all of them are used."""
    start, end = yield from _span(group, head)
    find = _transfers if group[0].transfer_method == "eip3009" else _permits
    found: dict[Authorization, Outcome] = {}
    found.update((yield from find(group, start, end)))
    if lost := [authorization for authorization in group if authorization not in found]:
        # The payer may cancel at any time, also long after the deadline.
        burned = yield from _burned(lost, start, head, network)
        diverted = yield from _diverted(
            [authorization for authorization in lost if authorization not in burned], start, head
        )
        found |= burned
        found |= diverted
        if unexplained := [authorization for authorization in lost if authorization not in found]:
            signed_s = min(authorization.signed_at for authorization in unexplained)
            early = yield from block_before(signed_s - _LONGEST_MARGIN_S, head=head)
            found.update((yield from find(unexplained, early, start - 1)))
        found |= {authorization: Unexplained() for authorization in lost if authorization not in found}
    return found


def _span(group: Sequence[Authorization], head: Block) -> Question[tuple[int, int]]:
    """The blocks in which the authorizations can have been settled."""
    signed_s = min(authorization.signed_at for authorization in group)
    closed_s = max(authorization.deadline for authorization in group) + EXPIRY_MARGIN_S
    start = yield from block_before(signed_s - CLOCK_MARGIN_S, head=head)
    if closed_s >= head.timestamp_s:
        return start, head.number
    end = yield from block_before(closed_s, head=head)
    return start, min(head.number, end + _BLOCKS_OF_SLACK)


def _permits(group: Sequence[Authorization], start: int, end: int) -> Question[dict[Authorization, SettlementFound]]:
    payees = tuple(sorted({address_topic(payee) for authorization in group for payee in authorization.payees}))
    topics = [TRANSFER, address_topic(group[0].payer), payees]
    candidates = yield from logs(group[0].asset, topics, from_block=start, to_block=end)
    return (yield from _settled_in_any(candidates, group))


def _transfers(group: Sequence[Authorization], start: int, end: int) -> Question[dict[Authorization, SettlementFound]]:
    candidates: list[Log] = []
    for nonces in _nonce_batches(group):
        topics = [AUTHORIZATION_USED, address_topic(group[0].payer), nonces]
        candidates += yield from logs(group[0].asset, topics, from_block=start, to_block=end)
    return (yield from _settled_in_any(candidates, group))


def _settled_in_any(
    candidates: Sequence[Log], group: Sequence[Authorization]
) -> Question[dict[Authorization, SettlementFound]]:
    found: dict[Authorization, SettlementFound] = {}
    waiting = {authorization.id: authorization for authorization in group}
    for tx_hash in dict.fromkeys(log.tx_hash for log in candidates):
        if not waiting:
            break
        settled = yield from _settled_in(tx_hash, list(waiting.values()))
        for authorization in settled:
            del waiting[authorization.id]
        found |= settled
    return found


def settled_nothing_of(tx_hash: str, authorization: Authorization) -> Question[bool]:
    """Whether a transaction is mined and does not settle the authorization.

    Only the transaction counts, not the nonce: a node that lags would show the nonce of a settlement as unused.
    """
    try:
        done = yield from receipt(tx_hash)
        mined = yield from transaction(tx_hash)
    except RpcError:  # nothing is known: not a reason to accuse anybody
        return False
    if done is None or mined is None:
        return False
    if authorization.transfer_method == "eip3009":
        return not transfer_settlements(done, [authorization])
    return not permit_settlements(mined, done, [authorization])


def _settled_in(tx_hash: str, group: Sequence[Authorization]) -> Question[dict[Authorization, SettlementFound]]:
    if group[0].transfer_method == "eip3009":
        done = yield from receipt(tx_hash)
        return {} if done is None else transfer_settlements(done, group)
    mined = yield from transaction(tx_hash)
    # The calldata tell whether the transaction matters: of those that settle other sessions nothing more is read.
    named = (
        []
        if mined is None
        else [authorization for authorization in group if authorization.nonce.to_bytes(32, "big") in mined.input]
    )
    if mined is None or not named:
        return {}
    done = yield from receipt(tx_hash)
    return {} if done is None else permit_settlements(mined, done, named)


def _diverted(
    group: Sequence[Authorization], start: int, head: Block
) -> Question[dict[Authorization, SettledElsewhere | SettlementFound]]:
    """Payments to others with these nonces: every settled transfer of the payer is looked into.

    What was signed for may be among them: the node that was asked before was behind the one that answers now.
    """
    found: dict[Authorization, SettledElsewhere | SettlementFound] = {}
    if not group or group[0].transfer_method == "eip3009":  # its event would have named the nonce
        return found
    topics = [TRANSFER, address_topic(group[0].payer)]
    candidates = yield from logs(group[0].asset, topics, from_block=start, to_block=head.number)
    for tx_hash in dict.fromkeys(log.tx_hash for log in candidates):
        mined, done = (yield from transaction(tx_hash)), (yield from receipt(tx_hash))
        if mined is None or done is None:
            continue
        found |= permit_settlements(
            mined, done, [authorization for authorization in group if authorization not in found]
        )
        for authorization in group:
            if authorization not in found and (diverted := diverted_settlement(mined, done, authorization)) is not None:
                found[authorization] = SettledElsewhere(settlement=diverted)
    return found


def _burned(
    group: Sequence[Authorization], start: int, head: Block, network: Network
) -> Question[dict[Authorization, Cancelled]]:
    payer, end = address_topic(group[0].payer), head.number
    events: list[Log] = []
    if group[0].transfer_method == "eip3009":
        for nonces in _nonce_batches(group):
            topics = [AUTHORIZATION_CANCELED, payer, nonces]
            events += yield from logs(group[0].asset, topics, from_block=start, to_block=end)
    else:
        events = yield from logs(network.permit2, [NONCE_INVALIDATION, payer], from_block=start, to_block=end)
    return {
        authorization: Cancelled(
            tx_hash=event.tx_hash,
            block_number=event.block_number,
            block_hash=event.block_hash,
        )
        for authorization in group
        for event in reversed(events)  # the first one counts: Permit2 burns a nonce again without an error
        if invalidates(event, authorization)
    }


def _nonce_batches(group: Sequence[Authorization]) -> Iterator[tuple[str, ...]]:
    for first in range(0, len(group), _NONCES_PER_QUERY):
        yield tuple(nonce_topic(authorization.nonce) for authorization in group[first : first + _NONCES_PER_QUERY])


def _confirmed(found: Mapping[Authorization, Outcome], needed: int) -> Question[dict[Authorization, Outcome]]:
    """The same with the number of blocks on each; `Unexplained` where the block is not in the chain any more."""
    places = {authorization: place for authorization, outcome in found.items() if (place := _place_of(outcome))}
    counts = yield from confirmations(places.values(), needed=needed)
    confirmed = dict(found)
    for authorization, place in places.items():
        count = counts[place]
        # Found by one node, and not known to the next one, which is behind: seen, and confirmed by nobody.
        confirmed[authorization] = (
            Unexplained() if count == 0 else _with_confirmations(found[authorization], count or 0)
        )
    return confirmed


def _place_of(outcome: Outcome) -> Place | None:
    match outcome:
        case SettlementFound() | Cancelled():
            return Place(outcome.block_number, outcome.block_hash)
        case SettledElsewhere(settlement=settled):
            return Place(settled.block_number, settled.block_hash)
        case NotSettled() | Unexplained():
            return None
        case _:
            assert_never(outcome)


def _with_confirmations(outcome: Outcome, count: int) -> Outcome:
    match outcome:
        case SettlementFound() | Cancelled():
            return replace(outcome, confirmations=count)
        case SettledElsewhere(settlement=settled):
            return SettledElsewhere(settlement=replace(settled, confirmations=count))
        case NotSettled() | Unexplained():
            return outcome
        case _:
            assert_never(outcome)
