"""Gateways: honest ones, and those that lie, deny, hoard signatures, settle anyway, overcharge, forget, restart.

A gateway keeps every signature that it ever saw. Which of them it settles, when, and for how much, is its character.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import httpx

from opengradient_x402.models import find_model, usd_to_atomic
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import CHALLENGE_HEADER, RESPONSE_HEADER, SIGNATURE_HEADER
from opengradient_x402.payment.sessions import SESSION_HEADER
from simulation.chain import Chain, Signature
from simulation.desks import ChannelPayment, Desk, Refused, channel_payment

CHANNEL_SCHEME = "batch-settlement"
MODEL = "openai/gpt-4.1-mini"
OPG_USD = "0.1"
_USAGES = tuple((20 * (i + 1), 40 * (i % 7 + 1)) for i in range(20))
_ERRORS = (400, 403, 429, 500, 502)


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """How often a gateway does what. All zero: an honest one."""

    denies: float = 0.0
    """Answers a payment with 402."""
    fails: float = 0.0
    """Answers a payment with an error."""
    asks_anew: float = 0.0
    """A denial names other terms."""
    settles_denied: float = 0.0
    """Settles what it denied, failed or saw at all: the largest signature under the nonce, at a late moment."""
    overcharges: float = 0.0
    """Settles all that a session allows."""
    inflates: float = 0.0
    """Quotes, and takes, ten times the price."""
    forgets: float = 0.0
    """Does not know a session any more."""
    vanishes: float = 0.0
    """Is gone for good after a call."""
    lies_about_charges: float = 0.0
    """Says another charge, or another sum of charges, of a channel."""
    forges_corrections: float = 0.0
    """Says that a good voucher has a wrong sum, and shows a state that is not the channel's."""
    is_slow_to_free: float = 0.0
    """Keeps a channel busy after its answer."""
    is_mute: float = 0.0
    """Does not say what a call on a channel was charged."""
    date_off_s: float = 0.0
    """How far its `Date` may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a gateway asks for."""

    scheme: str
    method: str
    amount_atomic: int
    timeout_s: int


@dataclass(slots=True, eq=False)
class Session:
    """A bill that is open."""

    signature: Signature
    cost_atomic: int = 0
    used_s: float = 0.0
    is_closed: bool = False


class Gateway:
    """One gateway. `later(delay_s, work)` is how it gets things done in time."""

    def __init__(
        self,
        origin: str,
        *,
        chain: Chain,
        network: Network,
        terms: Terms,
        payee: str,
        facilitator: str,
        character: Character,
        has_sessions: bool,
        sends_date: bool,
        rng: random.Random,
        later: Callable[[float, Callable[[], None]], None],
        settled: Callable[[], None],
    ) -> None:
        self.origin = origin
        self.terms = terms
        self.character = character
        self._first_terms = terms
        self._chain, self._network, self._rng, self._later, self._settled = chain, network, rng, later, settled
        self._payee, self._facilitator = payee, facilitator
        self._has_sessions = has_sessions and terms.scheme == "upto"
        self._sends_date = sends_date
        self._sessions: dict[str, Session] = {}
        self._held: dict[int, list[Signature]] = {}
        self._served: set[int] = set()
        self._is_gone = False
        self.desk = Desk(
            chain,
            character,
            rng=rng,
            happens=self._happens,
            later=later,
            settled=settled,
            network=network.caip2,
        )
        if terms.scheme == CHANNEL_SCHEME:
            self._claim_later()

    # -- answers

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The response to a call."""
        if self._is_gone:
            return self._response(502, b"")
        if (session_id := request.headers.get(SESSION_HEADER)) is not None:
            return self._ridden(session_id)
        if (header := request.headers.get(SIGNATURE_HEADER)) is not None:
            payment, accepted = _signature(header)
            if isinstance(payment, ChannelPayment):
                return self._paid_by_voucher(payment, accepted)
            return self._paid(payment, accepted)
        return self._asked("payment required")

    def restart(self, *, settles: bool) -> None:
        """Forgets its sessions, after settling them or without."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if settles:
                self._close(session)
        if settles:
            self.desk.claim()
        self.desk.forget()

    def change_price(self) -> None:
        """From now on it asks for something else."""
        amount = self._first_terms.amount_atomic * self._rng.choice((50, 80, 100, 120, 180)) // 100
        self.terms = replace(self._first_terms, amount_atomic=amount)

    def _ridden(self, session_id: str) -> httpx.Response:
        session = self._sessions.get(session_id)
        if session is None or session.is_closed or self._happens(self.character.forgets):
            self._sessions.pop(session_id, None)
            return self._denied("session expired or exhausted")
        return self._serve(session)

    def _paid(self, signature: Signature, accepted: dict[str, Any]) -> httpx.Response:
        held = self._held.setdefault(signature.nonce, [])
        if signature not in held:
            held.append(signature)
            if self._happens(self.character.settles_denied):
                self._plan_theft(signature)
        if self._happens(self.character.denies):
            return self._denied("insufficient_funds")
        if self._happens(self.character.fails):
            status = self._rng.choice(_ERRORS)
            return self._response(status, b'{"error": {"message": "the provider failed"}}')
        if (problem := self._problem(signature, accepted)) is not None:
            return self._asked(problem)
        self._served.add(signature.nonce)
        if signature.scheme == "exact":
            return self._exact(signature)
        session = Session(signature, used_s=self._chain.now_s)
        if self._has_sessions:
            session_id = f"{self._rng.getrandbits(128):032x}"
            self._sessions[session_id] = session
            self._later(60.0, lambda: self._close_if_idle(session))
            return self._serve(session, {SESSION_HEADER: session_id})
        response = self._serve(session)
        self._later(self._rng.random() * 20, lambda: self._close(session))
        return response

    def _paid_by_voucher(self, payment: ChannelPayment, accepted: dict[str, Any]) -> httpx.Response:
        self.desk.keep(payment)
        if self._happens(self.character.denies):
            return self._denied("insufficient_funds")
        if self._happens(self.character.fails):
            return self._response(self._rng.choice(_ERRORS), b'{"error": {"message": "the provider failed"}}')
        amount = 0 if payment.kind == "refund" else self.terms.amount_atomic
        try:
            if accepted != self._entry(self.terms):
                raise Refused("terms changed")
            record = self.desk.admit(payment, amount)
        except Refused as refused:
            return self._asked(str(refused), extra=refused.extra)
        if payment.kind == "refund":
            return self._response(200, b"{}", {RESPONSE_HEADER: _encoded(self.desk.refund(payment, record))})
        prompt, completion = self._rng.choice(_USAGES)
        cost = price_of(prompt, completion) * (10 if self._happens(self.character.inflates) else 1)
        response = self.desk.charge(payment, record, cost, amount)
        self._is_gone = self._happens(self.character.vanishes)
        is_mute = self._happens(self.character.is_mute)
        body = _body(prompt, completion, min(cost, amount))
        return self._response(200, body, None if is_mute else {RESPONSE_HEADER: _encoded(response)})

    def _claim_later(self) -> None:
        def claim() -> None:
            if not self._is_gone:
                self.desk.claim()
                self._claim_later()

        self._later(self._rng.expovariate(1 / 120), claim)

    def _problem(self, signature: Signature, accepted: dict[str, Any]) -> str | None:
        if accepted != self._entry(self.terms):
            return "terms changed"
        if signature.deadline < self._chain.now_s + 6:
            return "expired"
        is_used = (signature.method, signature.nonce) in self._chain.used
        return "nonce used" if is_used or signature.nonce in self._served else None

    def _exact(self, signature: Signature) -> httpx.Response:
        if not self._chain.settle(signature, signature.amount_atomic):
            return self._asked("settlement failed")
        self._settled()
        done = self._chain.used[signature.method, signature.nonce]
        claims = {"success": True, "transaction": done.hash, "amount": str(signature.amount_atomic)}
        return self._serve(Session(signature), {RESPONSE_HEADER: _encoded(claims)})

    def _serve(self, session: Session, headers: dict[str, str] | None = None) -> httpx.Response:
        prompt, completion = self._rng.choice(_USAGES)
        cost = price_of(prompt, completion)
        if self._happens(self.character.inflates):
            cost *= 10
        session.cost_atomic += cost
        session.used_s = self._chain.now_s
        return self._response(200, _body(prompt, completion, cost), headers)

    def _denied(self, why: str) -> httpx.Response:
        match self._rng.randrange(5):
            case 0:
                return self._response(402, b"{}")
            case 1:
                return self._response(402, b"{}", {CHALLENGE_HEADER: "bm90IGpzb24"})
            case 2:
                claims = {"success": False, "errorReason": why, "transaction": ""}
                return self._asked(why, {RESPONSE_HEADER: _encoded(claims)})
        if self._happens(self.character.asks_anew):
            return self._asked(why, terms=self._other_terms())
        return self._asked(why)

    def _other_terms(self) -> Terms:
        terms = self._first_terms
        match self._rng.randrange(4):
            case 0:  # another nonce space
                other = "eip3009" if terms.method == "permit2" else "permit2"
                amount = terms.amount_atomic // 2
                scheme = terms.scheme if terms.scheme == CHANNEL_SCHEME else "exact"
                self.terms = replace(terms, scheme=scheme, method=other, amount_atomic=amount)
            case 1:  # smaller, and shorter
                self.terms = replace(terms, amount_atomic=terms.amount_atomic // 10, timeout_s=5)
            case 2:  # larger, and longer
                self.terms = replace(terms, amount_atomic=terms.amount_atomic * 3 // 2, timeout_s=590)
            case _:
                self.terms = replace(terms, amount_atomic=terms.amount_atomic - self._rng.randrange(1, 1000))
        self._later(self._rng.random() * 120, self._come_to_its_senses)
        return self.terms

    def _come_to_its_senses(self) -> None:
        self.terms = self._first_terms

    def _asked(
        self,
        why: str,
        headers: dict[str, str] | None = None,
        *,
        terms: Terms | None = None,
        extra: dict[str, Any] | None = None,
    ) -> httpx.Response:
        """A 402; `extra` is what the offer says besides."""
        challenge = self._challenge(terms or self.terms, why)
        if extra:
            document = json.loads(base64.b64decode(challenge))
            document["accepts"][0]["extra"].update(extra)
            challenge = _encoded(document)
        return self._response(402, b"{}", {CHALLENGE_HEADER: challenge, **(headers or {})})

    def _response(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        headers = {"content-type": "application/json", **(headers or {})}
        if self._sends_date:
            off_s = (2 * self._rng.random() - 1) * self.character.date_off_s
            headers["date"] = _date(int(self._chain.now_s + off_s))
        return httpx.Response(status, headers=headers, content=body)

    def _challenge(self, terms: Terms, error: str) -> str:
        return _challenge(self._network, terms, self._payee, self._facilitator, self.origin, error)

    def _entry(self, terms: Terms) -> dict[str, Any]:
        return _entry(self._network, terms, self._payee, self._facilitator)

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._rng.random() < chance

    # -- taking the money

    def _close_if_idle(self, session: Session) -> None:
        if session.is_closed:
            return
        now_s, deadline = self._chain.now_s, session.signature.deadline
        if now_s - session.used_s >= 59 or now_s > deadline - 20:
            self._close(session)
        else:
            self._later(
                min(60.0 - (now_s - session.used_s), deadline - 15 - now_s), lambda: self._close_if_idle(session)
            )

    def _close(self, session: Session) -> None:
        session.is_closed = True
        most = session.signature.amount_atomic
        amount = most if self._happens(self.character.overcharges) else min(session.cost_atomic, most)
        if amount and self._chain.settle(session.signature, amount, after_blocks=self._rng.choice((1, 1, 2))):
            self._settled()

    def _plan_theft(self, signature: Signature) -> None:
        left_s = max(0.0, signature.deadline - self._chain.now_s - 8)
        self._later(left_s * self._rng.choice((0.0, 0.01, 0.1, 0.6, 1.0)), lambda: self._steal(signature.nonce))

    def _steal(self, nonce: int) -> None:
        """Settles all that the nonce allows, in every nonce space."""
        for signature in sorted(self._held[nonce], key=lambda held: -held.amount_atomic):
            if self._chain.settle(signature, signature.amount_atomic):
                self._settled()


@lru_cache(maxsize=256)
def price_of(prompt_tokens: int, completion_tokens: int) -> int:
    """What a call costs by the published price, in atomic units."""
    info = find_model(MODEL)
    assert info is not None
    usd = info.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    from decimal import Decimal

    return usd_to_atomic(usd, asset_usd=Decimal(OPG_USD), decimals=18)


@lru_cache(maxsize=1024)
def _body(prompt_tokens: int, completion_tokens: int, cost_atomic: int) -> bytes:
    whole, rest = divmod(cost_atomic, 10**18)
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-4.1-mini",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer."}}
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
            "opengradient": {"cost_opg": f"{whole}.{rest:018d}", "opg_price_usd": OPG_USD},
        }
    ).encode()


@lru_cache(maxsize=4096)
def _signature(header: str) -> tuple[Signature | ChannelPayment, dict[str, Any]]:
    document = json.loads(base64.b64decode(header))
    payload, accepted = document["payload"], document["accepted"]
    if "voucher" in payload:
        return channel_payment(payload), accepted
    if (permit := payload.get("permit2Authorization")) is not None:
        found = Signature(
            method="permit2",
            nonce=int(permit["nonce"]),
            amount_atomic=int(permit["permitted"]["amount"]),
            deadline=int(permit["deadline"]),
            payee=permit["witness"]["to"],
            spender=permit["spender"],
            scheme=accepted["scheme"],
        )
    else:
        transfer = payload["authorization"]
        found = Signature(
            method="eip3009",
            nonce=int(transfer["nonce"], 16),
            amount_atomic=int(transfer["value"]),
            deadline=int(transfer["validBefore"]),
            payee=transfer["to"],
            spender=accepted["asset"],
            scheme=accepted["scheme"],
        )
    return found, accepted


def signature_in(request: httpx.Request) -> Signature | ChannelPayment | None:
    """The signature that a request carries, or the voucher."""
    header = request.headers.get(SIGNATURE_HEADER)
    return None if header is None else _signature(header)[0]


def allowed_in(request: httpx.Request) -> int:
    """What a request says that it may cost."""
    return int(_signature(request.headers[SIGNATURE_HEADER])[1]["amount"])


@lru_cache(maxsize=4096)
def _challenge(network: Network, terms: Terms, payee: str, facilitator: str, origin: str, error: str) -> str:
    document = {
        "x402Version": 2,
        "error": error,
        "resource": {"url": f"{origin}/v1/chat/completions"},
        "accepts": [_entry(network, terms, payee, facilitator)],
    }
    return _encoded(document)


def _entry(network: Network, terms: Terms, payee: str, facilitator: str) -> dict[str, Any]:
    extra = {"name": network.asset.name, "version": network.asset.version, "assetTransferMethod": terms.method}
    if terms.scheme == "upto":
        extra["facilitatorAddress"] = facilitator
    if terms.scheme == CHANNEL_SCHEME:
        extra |= {"receiverAuthorizer": facilitator, "withdrawDelay": 900}
    return {
        "scheme": terms.scheme,
        "network": network.caip2,
        "asset": network.asset.address,
        "amount": str(terms.amount_atomic),
        "payTo": payee,
        "maxTimeoutSeconds": terms.timeout_s,
        "extra": extra,
    }


def _encoded(document: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


@lru_cache(maxsize=4096)
def _date(now_s: int) -> str:
    return formatdate(now_s, usegmt=True)
