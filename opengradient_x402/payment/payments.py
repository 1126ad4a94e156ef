"""What one payer remembers and decides: terms, funds, budget, sessions, receipts. Shared by all its clients.

It stands between the handshake, which knows the order of things on the wire, and policy, signer, ledger and
sessions, which each know one thing. Anything slow is a `Future`, for sync and async callers alike.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
from pydantic import SecretStr

from opengradient_x402.channels.rides import Rides
from opengradient_x402.errors import OpenGradientError
from opengradient_x402.keys.signer import ForeignSigner, Keystore, Signer, signer_of
from opengradient_x402.ledger.authorizations import (
    Authorization,
    Budget,
    Objections,
    SignedTerms,
    authorization_id,
)
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.shared import OF_THE_PROCESS
from opengradient_x402.networks import Network, load_network, with_node
from opengradient_x402.payment.call import Answer, Call, build_receipt
from opengradient_x402.payment.doubts import Doubts
from opengradient_x402.payment.gateways import Clock, KnownGateways, origin_of
from opengradient_x402.payment.permits import SignedPayment, payment_header, signed_payload, terms_to_sign
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.sessions import PaidSession, SessionKey, SessionPool, redact_sessions
from opengradient_x402.payment.wallet import Funds
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.telemetry import metrics
from opengradient_x402.telemetry.events import Listener, listen, listeners
from opengradient_x402.telemetry.reports import Reports

if TYPE_CHECKING:
    from opengradient_x402.payment.challenge import Challenge, PaymentTerms
    from opengradient_x402.payment.channels.taking_back import PayerChannels
    from opengradient_x402.settings import Settings
    from opengradient_x402.settlement.reconciler import Reconciler

_log = logging.getLogger(__name__)


class Payments(Resident):
    """The paying side of a client. Thread-safe; one instance serves any number of clients and event loops."""

    def __init__(
        self,
        *,
        network: Network,
        signer: Signer,
        policy: SpendPolicy | None = None,
        ledger: Ledger,
        on_event: Listener | None = None,
    ) -> None:
        redact_sessions()
        self.network = network
        self.signer = signer = signer_of(signer)
        self.payer: Final = signer.address
        """The address whose money is spent."""
        if isinstance(signer, ForeignSigner):
            signer.remember_in(ledger)
        self.policy = policy if policy is not None else SpendPolicy()
        self.bounds_calls: Final = self.policy.bounds_calls
        self.ledger = ledger
        self.reports = Reports(payer=self.payer, network=network.caip2)
        self.sessions = SessionPool(idle_s=network.session_idle_s, on_retired=self.reports.retired)
        self.gateways = KnownGateways(network=network, policy=self.policy, ledger=ledger)
        self._owns_ledger = False
        self._terms: dict[SessionKey, Challenge] = {}
        self.doubts = Doubts(payer=self.payer, network=network, ledger=ledger, reports=self.reports)
        self.clock = Clock(network=network, policy=self.policy)
        self.funds = Funds(network=network, signer=signer, policy=self.policy)
        self.rides = Rides(network=network, signer=signer, ledger=ledger)
        self.budget = Budget(limit_atomic=self.policy.per_day_atomic(network.asset))
        belongs(self, Ending.CONNECTIONS)
        metrics.opened(self)
        self._listening = None if on_event is None else weakref.finalize(self, listen(on_event, payer=self.payer))

    @classmethod
    def open(
        cls,
        *,
        network: str | Path | Network | None = None,
        private_key: str | bytes | SecretStr | Keystore | Signer | object | None = None,
        policy: SpendPolicy | None = None,
        ledger: Ledger | str | Path | None = None,
        rpc_url: str | SecretStr | None = None,
        web3: object | None = None,
        settings: Settings | None = None,
        on_event: Listener | None = None,
    ) -> Payments:
        """Payments from what the user gave, completed from the environment (`OG_*`) and `.env`.

        `private_key` is a key in any form that `signer_of` takes. `rpc_url` names the node that reads the chain (or
        several, with commas, asked in turn), in place of OG_RPC_URL; `web3` is a connected Web3 or AsyncWeb3 instead.

        `on_event` is called with each event of this payer in this process (`telemetry.events`), in a thread of its
        own, until these payments are closed.

        Raises ConfigurationError for a missing or malformed key, or an unknown network.
        """
        if settings is None:
            from opengradient_x402.settings import Settings

            settings = Settings.load()
        key = private_key if private_key is not None else settings.require_key()
        own = not isinstance(ledger, Ledger)
        payments = cls(
            network=with_node(
                load_network(network if network is not None else settings.network),
                rpc_url=rpc_url or (None if isinstance(network, Network) else settings.rpc_url),
                web3=web3,
            ),
            signer=signer_of(key),
            policy=policy,
            ledger=ledger if isinstance(ledger, Ledger) else OF_THE_PROCESS.opened(ledger or settings.ledger_url),
            on_event=on_event,
        )
        payments._owns_ledger = own
        if own:
            import sqlalchemy  # noqa: F401  (here, so that no first token waits for it)

            payments.ledger.open_soon()
        return payments

    @property
    def budget_atomic(self) -> int:
        """What may be spent or outstanding within 24 hours."""
        return self.budget.limit_atomic

    @cached_property
    def reconciler(self) -> Reconciler:
        """Reads the chain for this ledger; receipts update themselves with it."""
        return self.doubts.reconciler

    @cached_property
    def channels(self) -> PayerChannels:
        """The payment channels of this wallet: what is in them, and how it comes back."""
        from opengradient_x402.payment.channels.taking_back import PayerChannels

        return PayerChannels(
            network=self.network, signer=self.signer, policy=self.policy, gateways=self.gateways, rides=self.rides
        )

    def close(self) -> None:
        """Writes what the ledger still holds; closes it if it was opened for this, and nobody else uses it.

        Sessions settle on their own.
        """
        if self._listening is not None:
            self._listening()
        if self._owns_ledger:
            self._owns_ledger = False
            OF_THE_PROCESS.released(self.ledger)
        else:
            self.ledger.flush()

    def _renew(self) -> None:
        """A child pays for itself: sessions, known terms and payments in doubt stay with the parent."""
        self._terms = {}
        self.doubts.renew()
        self.sessions.renew()
        self.rides.renew()

    # -- before signing

    def session_key(self, request: httpx.Request) -> SessionKey:
        """What a session for this request is bound to."""
        return SessionKey(origin_of(request.url), request.method, request.url.path, self.payer)

    def known_terms(self, key: SessionKey) -> Challenge | None:
        """The last challenge of this endpoint, for a payment without asking first."""
        return self._terms.get(key)

    def remember_terms(self, key: SessionKey, challenge: Challenge) -> None:
        """Keeps what this endpoint asked for."""
        self._terms[key] = challenge

    def forget_terms(self, key: SessionKey) -> None:
        """Drops what this endpoint asked for, since it asks for something else now."""
        self._terms.pop(key, None)

    def choose(
        self,
        challenge: Challenge,
        key: SessionKey,
        *,
        payees: frozenset[str] | None = None,
        earlier: Authorization | None = None,
    ) -> PaymentTerms:
        """The terms that the policy accepts; `payees` are all that may be paid at a registered endpoint.

        After an `earlier` signature only terms in its nonce space are accepted. Raises PolicyRefused.
        """
        return self.policy.choose(
            challenge,
            network=self.network,
            origin=key.origin,
            payees=payees,
            pinned_facilitator=self.gateways.facilitator(key.origin),
            last_amount_atomic=self.gateways.last_amount(key.origin),
            first_amount_atomic=self.gateways.first_amount(key.origin),
            nonce_space=None if earlier is None else (earlier.transfer_method, earlier.asset),
        )

    def objections(self, key: SessionKey) -> Future[Objections]:
        """What the ledger knows that stands against a signature."""
        return self.ledger.objections(network=self.network.caip2, payer=self.payer, origin=key.origin)

    def check_call(self, call: Call, key: SessionKey, *, terms: PaymentTerms | SignedTerms) -> None:
        """Refuses a call that could cost more than the policy allows. Raises PolicyRefused."""
        self.gateways.check_token_price(key.origin)
        if self.bounds_calls:
            worst = self.gateways.worst_case(call, key.origin, terms)
            self.policy.check_call(worst, asset=self.network.asset, model=call.model)

    def check_limits(self, call: Call, key: SessionKey, authorization: Authorization) -> None:
        """Sets the call's worst case aside in every run that makes it. Raises BudgetExceeded."""
        for limit in call.limits:
            limit.admit(
                call.id,
                authorization,
                worst_case_atomic=self.gateways.worst_case(call, key.origin, authorization.terms),
                asset=self.network.asset,
                model=call.model,
            )

    def draft(
        self, terms: PaymentTerms, call: Call, endpoint: str, *, earlier: Authorization | None = None
    ) -> Authorization:
        """The authorization that this call is about to sign; with `earlier`, a further signature under its nonce.

        Raises PolicyRefused for another chain's terms.
        """
        # Made now, and not when the call ends: the garbage collector may end one anywhere, also in this import.
        _ = self.reconciler
        to_sign = (terms_to_sign(terms, network=self.network, now_s=int(time.time())),)
        if earlier is not None:
            return replace(earlier, endpoint=endpoint, signed=to_sign)
        nonce = self.signer.nonce_for(call.id)
        return Authorization(
            id=authorization_id(self.network.caip2, self.payer, nonce),
            call_id=call.id,
            network=self.network.caip2,
            payer=self.payer,
            nonce=nonce,
            endpoint=endpoint,
            model=call.model,
            settlement_mode=call.settlement_mode,
            signed=to_sign,
            asset_symbol=self.network.asset.symbol,
            asset_decimals=self.network.asset.decimals,
        )

    def reserve(self, authorization: Authorization, *, is_first: bool = False) -> Future[Authorization]:
        """Writes the authorization, and its amount in the budget, to disk; the result has all signatures of its nonce.

        Raises BudgetExceeded; CallKnown when it `is_first` and the ledger has its call already.
        """
        return self.ledger.authorize(authorization, budget=self.budget, is_first=is_first)

    def release(self, drafted: Authorization, reserving: Future[Authorization], *, is_first: bool) -> None:
        """Frees what was reserved for a signature that never left.

        With `is_first`, only what was reserved here: a refused reservation is that of another process, which makes the
        same call under the same nonce, and its signature may be out.
        """
        if is_first:
            reserving.add_done_callback(lambda done: self._release_own(drafted, done))
        else:
            self.ledger.mark_unsent(drafted.id)

    def _release_own(self, drafted: Authorization, reserved: Future[Authorization]) -> None:
        if not reserved.cancelled() and reserved.exception() is None:
            self.ledger.mark_unsent(drafted.id)

    def is_same(self, terms: PaymentTerms, earlier: Authorization) -> bool:
        """Whether these terms, signed at the same time, would be what was signed last."""
        return terms_to_sign(terms, network=self.network, now_s=earlier.terms.signed_at) == earlier.terms

    def sign(
        self, terms: PaymentTerms, authorization: Authorization, challenge: Challenge, *, is_for_one: bool = False
    ) -> SignedPayment:
        """The signature over what the ledger already holds. With `is_for_one`, the payment names its call."""
        payload = signed_payload(authorization, accepted=terms, signer=self.signer, network=self.network)
        named = challenge.identified(authorization.call_id) if is_for_one else {}
        extensions = {**(self.funds.approval or {}), **named}
        header = payment_header(payload, accepted=terms, resource=challenge.resource, extensions=extensions)
        self.reports.signed(authorization)
        return SignedPayment(authorization=authorization, accepted=terms, header=header, is_for_one=is_for_one)

    # -- while a payment is out

    def attach_session(self, call: Call, session: PaidSession) -> None:
        """Notes that this session pays for the call."""
        self.attach(call, session.authorization)
        call.session = session

    def attach(self, call: Call, authorization: Authorization) -> None:
        """Notes, for the ledger too, that this authorization pays for the call, however this process ends."""
        call.authorization = authorization
        if authorization.call_id != call.id:  # that of the call that signed is recorded with its authorization
            self.ledger.under_way.begin(call.noted_under(authorization))

    def begun(self, call: Call, authorization: Authorization) -> Future[None]:
        """Notes in the ledger itself that this authorization pays for a keyed call. Raises CallKnown."""
        return self.ledger.begin_call(authorization, call.noted_under(authorization))

    def detach(self, call: Call) -> None:
        """Undoes `attach`: what was attached was not sent, or was not taken."""
        if call.session is not None:
            self.sessions.leave(call.session)
        if call.ride is not None:
            self.rides.leave(call.ride)
            call.ride = None
        authorization, call.session, call.authorization = call.authorization, None, None
        if authorization is not None and authorization.call_id != call.id:
            self.ledger.not_sent(call.id, authorization.id)

    # -- at the end

    def refused(self, call: Call, error: OpenGradientError) -> None:
        """Reports, once, that the call ended with this error."""
        if not call.is_refused:
            call.is_refused = True
            self.reports.refused(call.id, error, endpoint=call.base_url, model=call.model)

    def finish(
        self, call: Call, *, outcome: str, error: str | None = None, answer: Answer | None = None
    ) -> SettlementReceipt | None:
        """Ends the call: frees its seat, records its receipt, and returns it to the first one that ends the call.

        None when nothing was paid, for everybody who comes later (`call.receipt` has it), and in a forked child that
        inherited the call. A call of an earlier process that is not answered now stays as it was recorded then.
        """
        if call.authorization is None or call.process_id != os.getpid() or not call.may_end():
            return None
        if call.earlier is not None and not call.is_answered:
            return None
        receipt = call.receipt or self._made(call, outcome, error, answer)  # the former if a signal cut this off
        call.recorded = self.ledger.record_call(receipt, at_once=call.is_blocking)
        call.recorded.add_done_callback(_report_lost_record)
        if call.ride is not None and call.ride.dispute is not None:
            self.ledger.record_dispute(call.id, call.ride.dispute)
        if listeners:
            self.reports.ended(receipt)
        call.is_over = True
        return receipt

    def _made(self, call: Call, outcome: str, error: str | None, answer: Answer | None) -> SettlementReceipt:
        if call.ride is not None:
            call.claims = self.rides.end(call.ride, call.claims)
        receipt = build_receipt(call, outcome=outcome, error=error, answer=answer, asset=self.network.asset)
        receipt = call.receipt = self.gateways.estimated(receipt).followed_by(self.reconciler)
        if receipt.opg_usd is not None:
            self.gateways.note_quote(receipt.endpoint, receipt.opg_usd)
        if call.session is not None:
            cost_atomic = receipt.estimated_cost_atomic if receipt.cost_atomic is None else receipt.cost_atomic
            self.sessions.leave(call.session, cost_atomic=cost_atomic or 0)
        return receipt


def _report_lost_record(future: Future[str | None]) -> None:
    if (error := future.exception()) is not None:
        _log.error("A call's receipt could not be written to the ledger: %s", error)
