"""An approval that travels with a payment: signed by the payer, sent and paid for by the facilitator.

x402 extension `erc20ApprovalGasSponsoring`, version 1. It lets a wallet without any gas coin pay. It is made only
where the user asked for it by name (`SpendPolicy.sponsored_approval`), for the amount that the user named, and only
for a gateway that offers it. Does not know when a payment needs one.
"""

from __future__ import annotations

from typing import Any, Final

from opengradient_x402.addresses import address_word
from opengradient_x402.chain.node import Question
from opengradient_x402.chain.transactions import prepare_transaction, sign_transaction
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import Challenge
from opengradient_x402.signer import Signer

EXTENSION: Final = "erc20ApprovalGasSponsoring"
_VERSION: Final = "1"
_APPROVE: Final = bytes.fromhex("095ea7b3")  # approve(address,uint256), ERC-20


def is_offered(challenge: Challenge) -> bool:
    """Whether this gateway's facilitator sends approvals for its payers."""
    return EXTENSION in challenge.extensions


def signed_approval(network: Network, signer: Signer, *, amount_atomic: int) -> Question[dict[str, Any]]:
    """The payment's `extensions`: a signed transaction that lets Permit2 move `amount_atomic`. It is not sent here."""
    data = _APPROVE + address_word(network.permit2) + amount_atomic.to_bytes(32, "big")
    unsigned = yield from prepare_transaction(network, signer.address, to=network.asset.address, data=data)
    return {
        EXTENSION: {
            "info": {
                "from": signer.address,
                "asset": network.asset.address,
                "spender": network.permit2,
                "amount": str(amount_atomic),
                "signedTransaction": "0x" + sign_transaction(unsigned, signer=signer).raw.hex(),
                "version": _VERSION,
            }
        }
    }
