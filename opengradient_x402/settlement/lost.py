"""A ledger at whose place another one was before: whether the chain shows payments of today that it does not have.

Asked before the first signature, and only then: what is missing would count in no budget.
"""

from __future__ import annotations

import logging
import time

from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.authorizations import BUDGET_WINDOW_S
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.upkeep import known_in
from opengradient_x402.networks import Network
from opengradient_x402.settlement.unrecorded import Unrecorded, transfers_since, unrecorded

_log = logging.getLogger(__name__)
_HOURS = BUDGET_WINDOW_S // 3600
_NOT_PAID = "Nothing was signed and nothing was paid."
_ACCEPT = (
    "If the old ledger can be put back, do so. To go on with this one, run `opengradient-x402 ledger repair`, which "
    "accepts it as it is: its budget then begins at zero."
)


def refusal(ledger: Ledger, *, payer: str, network: Network) -> str | None:
    """Why nothing may be signed, in sentences. None when no payment of this wallet is missing: that is noted then.

    Waits for the chain. Raises LedgerUnavailable, ChainUnavailable.
    """
    before = f"{found_in(ledger)}."
    try:
        missing = _missing(ledger, payer=payer, network=network)
    except ChainUnavailable as exc:
        raise ChainUnavailable(
            f"{before} Which of its payments are missing could not be read from the chain: {exc.message} {_NOT_PAID} "
            f"Try again, or use another `rpc_url`. {_ACCEPT}"
        ) from exc
    if missing.count:
        return (
            f"{before} {network.name} shows {missing.count} payment{'' if missing.count == 1 else 's'} of {payer} in "
            f"the last {_HOURS} hours that this ledger does not have: "
            f"{network.asset.format(missing.amount_atomic)} in total{'' if missing.is_whole else ', or more'}. The "
            f"newest transaction is {missing.newest_tx_hash}. They would not count in the budget. {_NOT_PAID} "
            f"{_ACCEPT}"
        )
    if not missing.is_whole:
        return (
            f"{before} {network.name} shows transfers of {payer} in the last {_HOURS} hours that could not all be "
            f"read: payments may be missing. {_NOT_PAID} Try again, or use another `rpc_url`. {_ACCEPT}"
        )
    _log.warning(
        "%s %s shows no payment of %s in the last %d hours that this ledger does not have, so this ledger is used. "
        "What was signed and is not settled yet counts in no budget.",
        *(before, network.name, payer, _HOURS),
    )
    ledger.submit(lambda book, conn: book.accept_loss(conn, network.caip2, payer), durable=True).result()
    return None


def found_in(ledger: Ledger) -> str:
    """What was found when this ledger was opened; without a full stop."""
    return f"Another ledger was in use at the place of {ledger!r} before, and is gone"


def _missing(ledger: Ledger, *, payer: str, network: Network) -> Unrecorded:
    since, chain_id, token = int(time.time()) - BUDGET_WINDOW_S, network.caip2, network.asset.address
    with ChainReader.at(network) as chain:
        transfers = chain.ask(transfers_since(since, payer=payer, network=network))
        known = ledger.read(
            lambda _, conn: known_in(conn, payer=payer, network=chain_id, asset=token, since=transfers.since)
        ).result()
        return chain.ask(unrecorded(transfers.logs, known, payer=payer, network=network))
