"""That nothing was taken with an authorization: it expired, or its payer cancelled it."""

from __future__ import annotations

from opengradient_x402.chain.questions import Log, Question, TransactionReceipt, logs, nonce_used, receipt
from opengradient_x402.chain.sources import Source
from opengradient_x402.chain.views import nonces_at_one_block
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.networks import Network
from opengradient_x402.proofs.bundle import Case
from opengradient_x402.proofs.checks.receipts import signature_finding
from opengradient_x402.proofs.findings import Finding, Proven, Read, Refuted, Statement, Undecided
from opengradient_x402.settlement.recognition import TRANSFER, address_topic, invalidates, settled_transfers
from opengradient_x402.settlement.search import nonce_of


def expiry_findings(case: Case, network: Network, source: Source) -> Question[list[Finding]]:
    """The payer's signature over the terms, and that their nonce is unused behind the deadline."""
    entry, statement = case.entry, Statement.NOTHING_TAKEN
    signed = signature_finding(case, None, network)
    if not isinstance(signed, Proven):
        why = "the file shows no signature of the payer that names this nonce, so any unused one could stand here"
        return [signed, Undecided(statement=statement, about=entry.id, why=why)]
    (view,) = yield from nonces_at_one_block([nonce_of(entry, network)])
    if view.used[nonce_of(entry, network)]:
        return [signed, Refuted(statement=statement, about=entry.id, why="its nonce is used on the chain")]
    if view.timestamp_s <= entry.deadline:
        why = "its deadline has not passed yet on the chain"
        return [signed, Refuted(statement=statement, about=entry.id, why=why)]
    why = f"nonce {entry.nonce}, which the payer signed for, is unused, and its deadline has passed"
    return [signed, Read(statement=statement, about=entry.id, why=why, source=source)]


def cancellation_finding(entry: Authorization, network: Network, source: Source) -> Question[Finding]:
    """That a transaction of the payer burned the nonce, and that nothing had been taken with it before."""
    statement, about, tx_hash = Statement.NOTHING_TAKEN, entry.id, entry.tx_hash
    done = yield from receipt(tx_hash or "")
    keeper = entry.asset if entry.transfer_method == "eip3009" else network.permit2
    burned = (log for log in _logs(done) if log.address == keeper and invalidates(log, entry))
    if done is None or (log := next(burned, None)) is None:
        why = f"transaction {tx_hash} does not invalidate its nonce"
        return Refuted(statement=statement, about=about, why=why)
    if keeper == network.permit2 and (why_not := (yield from _spent_before(log, entry, network))) is not None:
        return Undecided(statement=statement, about=about, why=why_not)
    why = f"the payer invalidated nonce {entry.nonce} in transaction {tx_hash}"
    return Read(statement=statement, about=about, why=why, source=source)


def _spent_before(burned: Log, entry: Authorization, network: Network) -> Question[str | None]:
    """Why the nonce may have been used before it was burned: Permit2 burns used ones too, and a token does not."""
    number = burned.block_number
    if (yield from nonce_used(network.permit2, entry.payer, entry.nonce, at=number - 1)):
        return f"its nonce was used or invalidated before transaction {burned.tx_hash}, which does not show by what"
    topics = [TRANSFER, address_topic(entry.payer)]
    for tx_hash in dict.fromkeys(
        log.tx_hash
        for log in (yield from logs(entry.asset, topics, from_block=number, to_block=number))
        if log.log_index < burned.log_index
    ):
        done = yield from receipt(tx_hash)
        if done is not None and any(settled_transfers(done, {network.upto_proxy, network.exact_proxy})):
            return f"a payment of the same block, in {tx_hash}, came before transaction {burned.tx_hash}"
    return None


def _logs(done: TransactionReceipt | None) -> tuple[Log, ...]:
    return done.logs if done is not None and done.is_success else ()
