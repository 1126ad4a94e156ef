"""Asks the facilitator to settle what a call or session cost, and carries out the faults of that step.

Under a live chain id it refuses payers that this devnet did not make.
"""

from __future__ import annotations

from typing import Any

from opengradient_devnet.chain.accounts import Wallets
from opengradient_devnet.chain.chain import Chain, KeyHolder
from opengradient_devnet.facilitator.channels import PAYER_REFUSED
from opengradient_devnet.facilitator.facilitator import Facilitator, Settlement, Verification, is_of_channel
from opengradient_devnet.facilitator.payments import parse_payment
from opengradient_devnet.faults import FailSettlement, Faults, NeverSettle, SettleAtCap, SettleForSomebodyElse
from opengradient_devnet.gateway.payment.decoy import decoy_payment


class HouseFacilitator(Facilitator):
    """A facilitator that handles only payers whom the devnet may serve (see `accounts.Wallets`)."""

    def __init__(self, chain: Chain, *, account: KeyHolder, wallets: Wallets) -> None:
        super().__init__(chain, account=account, may_be_served=wallets.may_be_served)
        self._wallets = wallets

    def verify(self, payload: Any, requirements: Any) -> Verification:
        """As the facilitator, but strangers are refused under a live chain id."""
        verdict = super().verify(payload, requirements)
        if verdict.payer is None or self._wallets.may_be_served(verdict.payer):
            return verdict
        return Verification(is_valid=False, payer=verdict.payer, reason=PAYER_REFUSED)

    def settle(self, payload: Any, requirements: Any, amount_atomic: int | None = None) -> Settlement:
        """As the facilitator, but nothing that strangers signed under a live chain id is sent anywhere.

        Channels refuse the deposits of strangers themselves, and what servers send for a channel is no payment.
        """
        if not is_of_channel(requirements):
            payer = parse_payment(payload).authorization.payer
            if not self._wallets.may_be_served(payer):
                return _unsent(requirements, reason=PAYER_REFUSED)
        return super().settle(payload, requirements, amount_atomic)


class Collector:
    """Verifies and settles payments as the facilitator does, unless a fault says otherwise."""

    def __init__(self, facilitator: Facilitator, *, faults: Faults, wallets: Wallets) -> None:
        self._facilitator = facilitator
        self._faults = faults
        self._wallets = wallets

    def verify(self, payload: dict[str, Any], requirements: dict[str, Any]) -> Verification:
        """Ask the facilitator; nothing moves."""
        return self._facilitator.verify(payload, requirements)

    def settle(
        self, payload: dict[str, Any], requirements: dict[str, Any], amount_atomic: int | None = None
    ) -> Settlement:
        """Take `amount_atomic` (None: the whole signed amount). Nothing is sent for an amount of 0."""
        failed = self._faults.take(FailSettlement)
        if failed is not None:
            return _unsent(requirements, reason=failed.reason)
        # The proxy refuses to settle 0, and nobody owes anything.
        if amount_atomic == 0 or self._faults.take(NeverSettle):
            return _unsent(requirements)
        if amount_atomic is not None and self._faults.take(SettleAtCap):
            amount_atomic = int(requirements["amount"])
        stranger = self._faults.take(SettleForSomebodyElse)
        if stranger is not None:
            payload, requirements = decoy_payment(
                {**requirements, "extra": {**requirements["extra"], "facilitatorAddress": self._facilitator.address}},
                wallets=self._wallets,
                pay_to=stranger.pay_to,
            )
        return self._facilitator.settle(payload, requirements, amount_atomic)


def _unsent(requirements: dict[str, Any], *, reason: str | None = None) -> Settlement:
    return Settlement(
        success=reason is None,
        transaction="",
        block_number=None,
        amount_atomic=0,
        payer=None,
        network=requirements["network"],
        reason=reason,
    )
