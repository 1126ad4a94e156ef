"""Breaks that the product once had, or could have, put back by hand: the simulation must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from opengradient_x402.channels import rides
from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Voucher
from opengradient_x402.errors import NotPaid
from opengradient_x402.ledger import disputes
from opengradient_x402.ledger.authorizations import authorization_id
from opengradient_x402.ledger.statements import Book
from opengradient_x402.ledger.tables import authorizations, signatures
from opengradient_x402.payment import handshake, payments, policy
from opengradient_x402.payment.channels import calls as channel_calls
from opengradient_x402.payment.gateways import Clock
from opengradient_x402.payment.payments import Payments
from opengradient_x402.settlement import channels as channel_settlement
from opengradient_x402.settlement import reconciler, search
from simulation.machine import Outcome

Break = Callable[[pytest.MonkeyPatch], None]


def second_nonce_space(patch: pytest.MonkeyPatch) -> None:
    """Terms of another contract are signed after a signature has left (threat 8)."""
    sign = payments.signed_payload

    def signed_payload(authorization: Any, **options: Any) -> Any:
        return sign(replace(authorization, signed=(authorization.terms,)), **options)

    patch.setattr(policy, "_other_nonces", lambda terms, nonce_space: None)
    patch.setattr(payments, "signed_payload", signed_payload)


def later_signature_overwrites(patch: pytest.MonkeyPatch) -> None:
    """What is reserved is the amount of the last signature (threat 16)."""
    authorize = Book.authorize

    def overwrite(self: Book, conn: Any, authorization: Any, budget: Any) -> Any:
        whole = authorize(self, conn, authorization, budget)
        if len(whole.signed) > 1:
            self.update(conn, whole, replace(whole, signed=whole.signed[-1:]))
        return whole

    patch.setattr(Book, "authorize", overwrite)


def earlier_signature_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A further signature takes the place of the one before in the ledger (threat 16)."""
    authorize = Book.authorize

    def forget(self: Book, conn: Any, authorization: Any, budget: Any) -> Any:
        conn.execute(signatures.delete().where(signatures.c.authorization_id == authorization.id))
        conn.execute(authorizations.delete().where(authorizations.c.id == authorization.id))
        return authorize(self, conn, authorization, budget)

    patch.setattr(Book, "authorize", forget)


def denial_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A 402 after a signature means "not paid" (threat 15)."""
    unresolved = handshake._unresolved

    def rejected(call: Any, *args: Any) -> Any:
        return NotPaid(unresolved(call, *args).message)

    patch.setattr(handshake, "_unresolved", rejected)


def error_is_believed(patch: pytest.MonkeyPatch) -> None:
    """An error after a signature means that the payment was not taken, and its reservation is freed (threat 14)."""
    send_signed = handshake._send_signed

    def freed(request: Any, call: Any, pays: Payments, ticket: Any, signed: Any) -> Any:
        response = yield from send_signed(request, call, pays, ticket, signed)
        if response.status_code >= 400:
            pays.ledger.mark_unsent(signed.authorization.id)
        return response

    patch.setattr(handshake, "_send_signed", freed)


def lost_answer_is_unsent(patch: pytest.MonkeyPatch) -> None:
    """A broken connection means that nothing has left."""
    patch.setattr(handshake, "NEVER_LEFT", (httpx.TransportError,))


def new_nonce_for_new_terms(patch: pytest.MonkeyPatch) -> None:
    """Terms that changed are signed under a new nonce (threat 15)."""
    draft = Payments.draft

    def anew(self: Payments, terms: Any, call: Any, endpoint: str, *, earlier: Any = None) -> Any:
        drafted = draft(self, terms, call, endpoint)
        if earlier is None:
            return drafted
        nonce = self.signer.nonce_for(f"{call.id} again")
        return replace(drafted, nonce=nonce, id=authorization_id(self.network.caip2, self.payer, nonce))

    patch.setattr(Payments, "draft", anew)


def expiry_by_two_nodes(patch: pytest.MonkeyPatch) -> None:
    """The time is one node's, the nonce another's (threat 35)."""
    if not hasattr(search, "nonces_at_one_block"):
        return  # no reading of both together has been built yet
    from opengradient_x402.chain.questions import authorization_state, chain_time, nonce_used
    from opengradient_x402.chain.views import View

    def apart(nonces: Any) -> Any:
        now_s, used = (yield from chain_time()), {}
        for nonce in dict.fromkeys(nonces):
            ask = nonce_used if nonce.is_bitmap else authorization_state
            used[nonce] = yield from ask(nonce.keeper, nonce.payer, nonce.number)
        return [View(timestamp_s=now_s, used=used)]

    patch.setattr(search, "nonces_at_one_block", apart)


def clock_unchecked(patch: pytest.MonkeyPatch) -> None:
    """The clock is compared only when a `Date` came (threat 7)."""
    patch.setattr(Clock, "check", lambda self: None)


def quote_is_believed(patch: pytest.MonkeyPatch) -> None:
    """What a gateway quotes is what a call may cost (threat 9)."""
    patch.setattr(disputes, "_published_cost", lambda receipt: None)


def maximum_is_believed(patch: pytest.MonkeyPatch) -> None:
    """Whatever is below the signed amount is right (threat 9)."""
    patch.setattr(disputes, "overcharge", lambda authorization, receipts: None)


def signs_before_writing(patch: pytest.MonkeyPatch) -> None:
    """The signature leaves while the ledger is still writing (threat 18)."""
    reserve = Payments.reserve

    def at_once(self: Payments, authorization: Any, **how: Any) -> Any:
        reserve(self, authorization, **how)
        done = Outcome()
        done.set_result(authorization)
        return done

    patch.setattr(Payments, "reserve", at_once)


def final_at_first_sight(patch: pytest.MonkeyPatch) -> None:
    """A settlement counts as soon as one block has it (threat 24)."""
    patch.setattr(
        reconciler.Reconciler,
        "_settled",
        lambda self, authorization, found, settled=reconciler.Reconciler._settled: replace(
            settled(self, authorization, found), confirmations_needed=1
        ),
    )


def no_margin_for_expiry(patch: pytest.MonkeyPatch) -> None:
    """What is about to expire is freed a little too early."""
    patch.setattr(search, "EXPIRY_MARGIN_S", -20)


def budget_of_one_process(patch: pytest.MonkeyPatch) -> None:
    """A budget counts nothing that was signed before (threat 33)."""
    patch.setattr(Book, "spent", lambda self, conn, *args, **options: 0)


def voucher_before_writing(patch: pytest.MonkeyPatch) -> None:
    """A voucher leaves while the ledger is still writing."""
    reserve = ChannelBook.reserve

    def at_once(self: ChannelBook, channel: Any, authorization: Any, **options: Any) -> Any:
        reserve(self, channel, authorization, **options)
        most = channel.charged_atomic + authorization.amount_atomic
        done = Outcome()
        done.set_result(
            (
                replace(channel, deposit=options["deposit"] or channel.deposit),
                Voucher(
                    authorization_id=authorization.id,
                    channel_id=channel.id,
                    base_atomic=channel.charged_atomic,
                    max_atomic=most,
                ),
            )
        )
        return done

    patch.setattr(ChannelBook, "reserve", at_once)


def lost_voucher_never_left(patch: pytest.MonkeyPatch) -> None:
    """A connection that broke means that the voucher has not left."""
    patch.setattr(channel_calls, "NEVER_LEFT", (httpx.TransportError,))


def channels_of_each_process(patch: pytest.MonkeyPatch) -> None:
    """A process does not look whether another one has a call on the channel."""
    patch.setattr(ChannelBook, "_is_held", lambda self, channel, book: False)


def charge_is_believed(patch: pytest.MonkeyPatch) -> None:
    """What a gateway says that a call cost is not compared with what was allowed."""

    def believed(claims: Any, *, base_atomic: int, max_atomic: int) -> Any:
        extra = claims.get("extra") or {}
        if "chargedAmount" not in extra:
            return "it says nothing"
        sum_atomic = int(extra["channelState"]["chargedCumulativeAmount"])
        return sum_atomic - base_atomic

    patch.setattr(rides, "charge_of", believed)


def old_block_is_news(patch: pytest.MonkeyPatch) -> None:
    """A node that is behind shows a channel as empty, and that is believed."""
    see = ChannelBook.see

    def seen(self: ChannelBook, channel: Any, state: Any) -> Any:
        return see(self, channel, replace(state, block=replace(state.block, number=2**40)))

    patch.setattr(ChannelBook, "see", seen)


def claims_count_for_each_call(patch: pytest.MonkeyPatch) -> None:
    """What was claimed once is booked for every call whose outcome is unknown."""

    def judge(channel: Any, vouchers: Any, state: Any, **_: Any) -> Any:
        is_empty = state.balance_atomic <= state.claimed_atomic and channel.deposit is None
        return {
            one.authorization_id: channel_settlement.Taken(
                amount_atomic=max(0, min(state.claimed_atomic, one.end_atomic) - one.base_atomic),
                reached_atomic=one.end_atomic,
            )
            for one in vouchers
            if is_empty or state.claimed_atomic >= one.end_atomic
        }

    patch.setattr(channel_settlement, "judge", judge)


BREAKS: dict[str, Break] = {
    made.__name__: made
    for made in (
        second_nonce_space,
        later_signature_overwrites,
        earlier_signature_forgotten,
        denial_is_believed,
        error_is_believed,
        lost_answer_is_unsent,
        new_nonce_for_new_terms,
        expiry_by_two_nodes,
        clock_unchecked,
        quote_is_believed,
        maximum_is_believed,
        signs_before_writing,
        final_at_first_sight,
        no_margin_for_expiry,
        budget_of_one_process,
        voucher_before_writing,
        lost_voucher_never_left,
        channels_of_each_process,
        charge_is_believed,
        old_block_is_news,
        claims_count_for_each_call,
    )
}
