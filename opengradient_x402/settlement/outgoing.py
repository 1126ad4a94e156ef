"""What left a wallet in one transaction: settlements, and deposits into payment channels. Pure readings of its logs.

Only the network's token counts. A settlement is a transfer that one of x402's proxies closed, or any transfer beside a
used EIP-3009 authorization of the wallet. Other transfers of the wallet are no payments by x402. Nor are those of
nothing: anybody can make them in the name of a wallet, beside payments of their own.
"""

from __future__ import annotations

from typing import Final

from opengradient_x402.chain.questions import Log, TransactionReceipt
from opengradient_x402.channels.events import COLLECTORS, ChannelMove, move_of
from opengradient_x402.networks import Network
from opengradient_x402.settlement.recognition import AUTHORIZATION_USED, TRANSFER, address_topic, settled_transfers

_WORD: Final = 32
_TRANSFER_TOPICS: Final = 3


def settled_in(done: TransactionReceipt, payer: str, network: Network) -> list[Log]:
    """The wallet's transfers that are settlements. Deposits by EIP-3009 are among them: see `deposits_in`."""
    through_proxies = list(settled_transfers(done, {network.upto_proxy, network.exact_proxy}))
    candidates = through_proxies
    if any(_names(log, AUTHORIZATION_USED, payer, network) for log in done.logs):
        candidates = through_proxies + [log for log in done.logs if log not in through_proxies]
    return [log for log in candidates if _moves(log, payer, network)]


def deposits_in(done: TransactionReceipt, payer: str, network: Network) -> tuple[list[Log], list[ChannelMove]]:
    """The wallet's transfers that a deposit followed, and those deposits."""
    paid_in: list[Log] = []
    deposits: list[ChannelMove] = []
    pending: list[Log] = []
    targets = {address_topic(collector) for collector in COLLECTORS}
    for log in sorted(done.logs, key=lambda log: log.log_index):
        move = move_of(log)
        if _moves(log, payer, network) and log.topics[2] in targets:
            pending.append(log)
        elif move is not None and move.kind == "deposit":
            if pending:
                deposits.append(move)
                paid_in += pending
            pending = []
    return paid_in, deposits


def _moves(log: Log, payer: str, network: Network) -> bool:
    """Whether it is a transfer out of the wallet, in the form that ERC-20 gives it."""
    has_form = len(log.topics) == _TRANSFER_TOPICS and len(log.data) == _WORD
    return has_form and any(log.data) and _names(log, TRANSFER, payer, network)


def _names(log: Log, event: str, payer: str, network: Network) -> bool:
    return log.address == network.asset.address and log.topics[:2] == (event, address_topic(payer))
