"""Whether a wallet can pay what it is about to sign for: balance and allowance, read before the first signature.

Known to suffice, it is not read again until a gateway says otherwise. An RPC node that does not answer is no reason
to refuse: the gateway looks too. Reading is done in a thread, for sync and async callers alike.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from opengradient_x402.effects import in_thread
from opengradient_x402.errors import AllowanceMissing, ChainUnavailable
from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.signer import Signer

if TYPE_CHECKING:
    from opengradient_x402.payment.challenge import Challenge, PaymentTerms


class Funds:
    """The funds of one wallet. Thread-safe: the worst race reads the chain twice."""

    def __init__(self, *, network: Network, signer: Signer, policy: SpendPolicy) -> None:
        self._network = network
        self._signer = signer
        self._policy = policy
        self._known_atomic = 0
        self.approval: dict[str, Any] | None = None
        """What travels with the next payment so that it can settle: an approval that the facilitator sends."""

    def check(self, terms: PaymentTerms, challenge: Challenge) -> Future[None] | None:
        """A look at the chain; None when the funds are known to suffice.

        The future raises InsufficientFunds or AllowanceMissing.
        """
        if terms.amount_atomic <= self._known_atomic:
            return None
        return in_thread(lambda: self._read(terms, challenge), name="opengradient-funds")

    def forget(self) -> None:
        """Look at the chain again before the next signature."""
        self._known_atomic = 0

    def _read(self, terms: PaymentTerms, challenge: Challenge) -> None:
        from opengradient_x402.payment.wallet import require_funds

        try:
            require_funds(self._network, self._signer.address, terms)
        except ChainUnavailable:
            return
        except AllowanceMissing:
            self.approval = self._sponsored_approval(terms, challenge)
            if self.approval is None:
                raise
            return  # the allowance comes with the settlement: the next payment looks again
        self._known_atomic, self.approval = terms.amount_atomic, None

    def _sponsored_approval(self, terms: PaymentTerms, challenge: Challenge) -> dict[str, Any] | None:
        """Only if the user asked for one by name, and the gateway offers it."""
        allowed = self._policy.sponsored_approval_atomic(self._network.asset)
        if allowed is None or allowed < terms.amount_atomic:
            return None
        from opengradient_x402.chain.node import ChainReader
        from opengradient_x402.payment.sponsored_approval import is_offered, signed_approval

        if not is_offered(challenge):
            return None
        with ChainReader(self._network.rpc_url, self._network.chain_id) as chain:
            return chain.ask(signed_approval(self._network, self._signer, amount_atomic=allowed))
