"""What became of authorizations on chain: asks for what `settlements` needs to decide, in as few scans as it can.

First the nonces: an unused one needs no search. Then one log scan per payer, token and method for all that
are used, in bounded windows from the signing time to the last deadline. Does not know the ledger, and writes
nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, assert_never

from opengradient_x402.chain.questions import (
    Block,
    Log,
    Question,
    authorization_state,
    block,
    block_before,
    chain_time,
    logs,
    nonce_used,
    receipt,
    transaction,
)
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
    "check_transaction",
    "find_settlement",
    "find_settlements",
]

CLOCK_MARGIN_S: Final = 900
"""The signing clock may be ahead of the chain's by at most this: the scan starts so much earlier."""
EXPIRY_MARGIN_S: Final = 30
"""An authorization counts as expired so long after its deadline: a reorganisation changes nothing then."""
_BLOCKS_OF_SLACK: Final = 64
"""How far `block_before` may be off."""
_NONCES_PER_QUERY: Final = 100


def find_settlement(authorization: Authorization, *, network: Network) -> Question[Outcome]:
    """What became of one authorization."""
    outcomes = yield from find_settlements([authorization], network=network)
    return outcomes[authorization]


def find_settlements(
    authorizations: Iterable[Authorization], *, network: Network
) -> Question[dict[Authorization, Outcome]]:
    """What became of many authorizations of one network.

    Whoever asks sees ChainUnavailable (RpcError) when the node does not answer.
    """
    outcomes: dict[Authorization, Outcome] = {}
    # The order matters: a nonce that is unused *after* this time was read was unused at this time.
    now_s = yield from chain_time()
    used: defaultdict[tuple[str, str, str], list[Authorization]] = defaultdict(list)
    for authorization in authorizations:
        if (yield from _is_used(authorization, network)):
            used[authorization.payer, authorization.asset, authorization.transfer_method].append(authorization)
        else:
            outcomes[authorization] = NotSettled(is_expired=now_s > authorization.deadline + EXPIRY_MARGIN_S)
    if used:
        head = yield from block()  # read last: every use that was seen lies at or below it
        for group in used.values():
            outcomes.update((yield from _explained(group, head=head, network=network)))
    return outcomes


def check_transaction(
    authorization: Authorization, tx_hash: str, *, network: Network
) -> Question[SettlementFound | None]:
    """Whether a transaction that somebody names is the settlement of an authorization; None when it is not."""
    if not (yield from _is_used(authorization, network)):
        return None
    head = yield from block()
    found = (yield from _settled_in(tx_hash, [authorization])).get(authorization)
    return None if found is None else _confirmed(found, head)


def _is_used(authorization: Authorization, network: Network) -> Question[bool]:
    if authorization.transfer_method == "permit2":
        return (yield from nonce_used(network.permit2, authorization.payer, authorization.nonce))
    if authorization.transfer_method == "eip3009":
        return (yield from authorization_state(authorization.asset, authorization.payer, authorization.nonce))
    assert_never(authorization.transfer_method)


def _explained(
    group: Sequence[Authorization], *, head: Block, network: Network
) -> Question[dict[Authorization, Outcome]]:
    """By what the used nonces of one payer, token and method were used."""
    start, end = yield from _span(group, head)
    find = _transfers if group[0].transfer_method == "eip3009" else _permits
    found: dict[Authorization, Outcome] = {}
    for authorization, settled in (yield from find(group, start, end)).items():
        found[authorization] = _confirmed(settled, head)
    if lost := [authorization for authorization in group if authorization not in found]:
        # The payer may cancel at any time, also long after the deadline.
        burned = yield from _burned(lost, start, head, network)
        diverted = yield from _diverted(
            [authorization for authorization in lost if authorization not in burned], start, head
        )
        found |= {
            authorization: burned.get(authorization) or diverted.get(authorization) or Unexplained()
            for authorization in lost
        }
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
    for tx_hash in dict.fromkeys(log.tx_hash for log in candidates):
        waiting = [authorization for authorization in group if authorization not in found]
        if waiting:
            found |= yield from _settled_in(tx_hash, waiting)
    return found


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
) -> Question[dict[Authorization, SettledElsewhere]]:
    """Payments to others with these nonces: every settled transfer of the payer is looked into."""
    found: dict[Authorization, SettledElsewhere] = {}
    if not group or group[0].transfer_method == "eip3009":  # its event would have named the nonce
        return found
    topics = [TRANSFER, address_topic(group[0].payer)]
    candidates = yield from logs(group[0].asset, topics, from_block=start, to_block=head.number)
    for tx_hash in dict.fromkeys(log.tx_hash for log in candidates):
        mined, done = (yield from transaction(tx_hash)), (yield from receipt(tx_hash))
        if mined is None or done is None:
            continue
        for authorization in group:
            if authorization not in found and (diverted := diverted_settlement(mined, done, authorization)) is not None:
                found[authorization] = SettledElsewhere(settlement=_confirmed(diverted, head))
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
            confirmations=max(1, head.number - event.block_number + 1),
        )
        for authorization in group
        for event in events
        if invalidates(event, authorization)
    }


def _nonce_batches(group: Sequence[Authorization]) -> Iterator[tuple[str, ...]]:
    for first in range(0, len(group), _NONCES_PER_QUERY):
        yield tuple(nonce_topic(authorization.nonce) for authorization in group[first : first + _NONCES_PER_QUERY])


def _confirmed(settled: SettlementFound, head: Block) -> SettlementFound:
    return replace(settled, confirmations=max(1, head.number - settled.block_number + 1))
