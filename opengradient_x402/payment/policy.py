"""What may be paid, to whom, on which chain, how much, for how long: the payer's side of a challenge.

Pure decisions over validated terms. Knows no budget history (the ledger adds up what was spent), signs
nothing and asks nobody.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from opengradient_x402.addresses import allow_list, checksum_address
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint, PolicyRefused
from opengradient_x402.http.places import is_private
from opengradient_x402.models import check_name, is_same_model
from opengradient_x402.money import Asset, Limit, check_limit, limit_atomic
from opengradient_x402.networks import GATEWAY_URL, Network, is_loopback
from opengradient_x402.payment.approval import Approval
from opengradient_x402.payment.challenge import Challenge, PaymentTerms, Scheme

logger = logging.getLogger(__name__)

SCHEMES: Final[tuple[Scheme, ...]] = ("upto", "batch-settlement", "exact")
"""All ways to pay; an `upto` session takes any number of calls at once, a channel one after the other."""
IdleChannels = Literal["keep", "refund", "withdraw"]
"""What becomes of a payment channel that no call has used for a while."""
_OPTIONAL_LIMITS: Final = ("sponsored_approval", "approve_above")
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_CLOCK_ADVICE: Final = "Set this machine's clock (NTP), or raise `max_clock_skew_s`."


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendPolicy:
    """Limits on payments; the defaults are safe for a developer's machine.

    A limit of money is text in whole tokens (`"0.5"`), or an int in atomic units. `max_per_authorization` bounds what
    one signature allows, `max_per_day` what is spent or outstanding within 24 hours. `max_per_call` and `max_per_model`
    (by model name) bound what a call may cost by published prices: they keep a call from being made. What a gateway
    then takes is bounded by the signature alone, and disputed when it is more. `max_price_increase_percent` bounds how
    far an asked amount may rise above the last accepted one of the same gateway, and above the first of the day; and
    how far a quoted token price may be from those before it. `max_deadline_s` is how long a signature may be valid,
    `max_clock_skew_s` how far this clock may be from a gateway's.

    `payees` and `facilitators` extend the network's own allow-lists. `pcr_hashes` are the enclave images (0x-hex, 32
    bytes) that may be called: as registered, or as attested by a gateway at a URL; None takes all. `schemes` are the
    ways to pay that are used, in the order of preference.

    `max_deposit` is the most that one deposit into a payment channel may move, and `max_channels` how many channels
    there may be with one gateway: another one is opened only when a call would have to wait. `max_withdraw_delay_s` is
    how long it may take to get a deposit back without the gateway's help. `idle_channels` says what becomes of channels
    that no call has used for `channel_idle_s` seconds, looked at when calls are paid by channels: they are kept, a
    refund is asked for, or they are withdrawn, which costs gas twice. What is in a channel can be claimed up to the
    last voucher only, so a deposit does not count as spent or as reserved.

    `sponsored_approval` is how much Permit2 may be allowed to move by a permit (for one payment) or an approval that
    the facilitator sends for a wallet without gas; None (the default) never signs one. `approval` is asked before a
    signature that allows more than `approve_above`: a function, sync or async, that takes an `ApprovalRequest` and
    returns True or False; without an answer within `approval_timeout_s` seconds nothing is signed.

    Raises ConfigurationError for limits that cannot be meant (floats, negative, unreadable).
    """

    max_per_authorization: Limit = "5"
    max_per_day: Limit = "20"
    max_per_call: Limit | None = None
    max_per_model: Mapping[str, Limit] | tuple[tuple[str, Limit], ...] = ()
    max_deadline_s: int = 3600
    max_price_increase_percent: int = 100
    max_clock_skew_s: int = 60
    payees: Collection[str] = frozenset()
    facilitators: Collection[str] = frozenset()
    allow_private_endpoints: bool = False
    pcr_hashes: Collection[str] | None = None
    sponsored_approval: Limit | None = None
    approve_above: Limit | None = None
    approval: Approval | None = None
    approval_timeout_s: float = 300.0
    schemes: Sequence[Scheme] = SCHEMES
    max_deposit: Limit = "2"
    max_channels: int = 4
    max_withdraw_delay_s: int = 86_400
    idle_channels: IdleChannels = "keep"
    channel_idle_s: int = 86_400

    def __post_init__(self) -> None:
        for name in ("max_per_authorization", "max_per_day", "max_deposit", "max_per_call", *_OPTIONAL_LIMITS):
            limit = getattr(self, name)
            if limit is not None or name in ("max_per_authorization", "max_per_day", "max_deposit"):
                check_limit(name, limit)
        self._check_asking()
        per_model = dict(self.max_per_model)
        for model, limit in per_model.items():
            check_name(model)
            check_limit(f"max_per_model[{model!r}]", limit)
        object.__setattr__(self, "max_per_model", tuple(sorted(per_model.items())))
        object.__setattr__(self, "schemes", _schemes(self.schemes))
        counts = ("max_deadline_s", "max_price_increase_percent", "max_clock_skew_s", "max_withdraw_delay_s")
        for name in (*counts, "max_channels", "channel_idle_s"):
            _check_count(name, getattr(self, name))
        if self.idle_channels not in get_args(IdleChannels):
            raise ConfigurationError(
                f"`idle_channels` is {self.idle_channels!r}; it is one of {list(get_args(IdleChannels))}. Nothing was "
                "paid."
            )
        for name in ("payees", "facilitators"):
            object.__setattr__(self, name, allow_list(name, getattr(self, name)))
        if self.pcr_hashes is not None:
            object.__setattr__(self, "pcr_hashes", _hashes(self.pcr_hashes))

    def _check_asking(self) -> None:
        if (self.approve_above is None) != (self.approval is None):
            raise ConfigurationError(
                "`approve_above` and `approval` belong together: the amount above which is asked, and who asks. "
                'Nothing was paid. Give both, such as `approve_above="0.5", approval=ask_in_terminal`.'
            )
        if self.approval is not None and not callable(self.approval):
            raise ConfigurationError(f"`approval` is {self.approval!r}; it must be a function. Nothing was paid.")
        wait_s: object = self.approval_timeout_s
        if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 < wait_s < threading.TIMEOUT_MAX:
            raise ConfigurationError(
                f"`approval_timeout_s` is {wait_s!r}; it must be seconds above 0. Nothing was paid."
            )

    def per_authorization_atomic(self, asset: Asset) -> int:
        """The most that one signature may authorize, in atomic units, as all amounts below."""
        return limit_atomic(self.max_per_authorization, asset)

    def sponsored_approval_atomic(self, asset: Asset) -> int | None:
        """How much a sponsored approval may allow; None when none is signed."""
        return None if self.sponsored_approval is None else limit_atomic(self.sponsored_approval, asset)

    def approve_above_atomic(self, asset: Asset) -> int | None:
        """Above this amount a person is asked; None when nobody is asked."""
        return None if self.approve_above is None else limit_atomic(self.approve_above, asset)

    def deposit_atomic(self, asset: Asset) -> int:
        """The most that one deposit into a channel may move."""
        return limit_atomic(self.max_deposit, asset)

    def per_day_atomic(self, asset: Asset) -> int:
        """The most that may be spent or outstanding within 24 hours."""
        return limit_atomic(self.max_per_day, asset)

    def per_call_atomic(self, asset: Asset) -> int | None:
        """The most that one call may cost in the worst case; None when only the other limits hold."""
        return None if self.max_per_call is None else limit_atomic(self.max_per_call, asset)

    def choose(
        self,
        challenge: Challenge,
        *,
        network: Network,
        origin: str,
        payees: Collection[str] | None = None,
        pinned_facilitator: str | None = None,
        last_amount_atomic: int | None = None,
        first_amount_atomic: int | None = None,
        nonce_space: tuple[str, str] | None = None,
    ) -> PaymentTerms:
        """The terms to accept: in the order of `schemes`, then the smallest cap.

        `payees` are the only ones that may be paid there (None: all of the allow-lists). `last_amount_atomic`
        is what this origin asked for last time, `first_amount_atomic` what it asked for first today (None: nothing
        to compare with). `nonce_space` (transfer method, asset) is that of a signature which has left already.
        Raises PolicyRefused with every refused entry and why.
        """
        _note_foreign_resource(challenge, origin)
        refused = [f"accepts[{skip.index}]: {skip.reason}" for skip in challenge.skipped]
        for terms in sorted(challenge.terms, key=self._preference):
            problem = (
                self._unwanted(terms)
                or _wrong_place(terms, network)
                or self._wrong_payee(terms, network, payees)
                or self._wrong_facilitator(terms, network, pinned_facilitator)
                or self._too_much(terms, network.asset)
                or self._ties_up(terms, network.asset)
                or self._drifted(terms, network.asset, last_amount_atomic, "last time")
                or self._drifted(terms, network.asset, first_amount_atomic, "first today")
                or _other_nonces(terms, nonce_space)
            )
            if problem is None:
                return terms
            refused.append(f"{terms.scheme} on {terms.network}: {problem}")
        reasons = " | ".join(refused)
        raise PolicyRefused(f"No terms of {origin} are acceptable; nothing was signed. {reasons}")

    @property
    def bounds_calls(self) -> bool:
        """Whether the worst case of a call matters."""
        return self.max_per_call is not None or bool(self.max_per_model)

    def check_call(self, worst_case_atomic: int, *, asset: Asset, model: str) -> None:
        """Refuse a call whose worst case is above `max_per_call`, or its model's `max_per_model`.

        When no price is known, the worst case of a call is all that its session is authorized for.
        Raises PolicyRefused.
        """
        limits: list[tuple[str, Limit]] = []
        if self.max_per_call is not None:
            limits.append(("max_per_call", self.max_per_call))
        own = dict(self.max_per_model).items()
        limits += [("max_per_model", limit) for name, limit in own if is_same_model(name, model)]
        for name, limit in limits:
            if worst_case_atomic > (most_atomic := limit_atomic(limit, asset)):
                raise PolicyRefused(
                    f"A call to {model} could cost {asset.format(worst_case_atomic)}; the limit is "
                    f"{asset.format(most_atomic)}. Nothing was signed for it. "
                    f"Raise `{name}`, lower `max_tokens`, or pick a cheaper model."
                )

    def is_usual(self, quoted_usd: Decimal, before_usd: Decimal) -> bool:
        """Whether a token price is near enough to one before it."""
        most = 1 + Decimal(self.max_price_increase_percent) / 100
        return before_usd / most <= quoted_usd <= before_usd * most

    def check_token_price(self, quoted_usd: Decimal, before_usd: Decimal, *, origin: str) -> None:
        """Refuse to pay a gateway whose token price jumped: costs are calculated with it. Raises PolicyRefused."""
        if self.is_usual(quoted_usd, before_usd):
            return
        raise PolicyRefused(
            f"{origin} quotes a token price of {quoted_usd} USD, after {before_usd} USD before. Nothing was signed. If "
            "the new price is right, raise `max_price_increase_percent`."
        )

    def check_endpoint(self, url: str) -> None:
        """Refuse to pay over a connection that others could change, or at an address that may be somebody else's.

        https, or plain http on loopback; no private or link-local address unless it is loopback or
        `allow_private_endpoints`. Names are not resolved here. Raises InsecureEndpoint.
        """
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise InsecureEndpoint(f"The gateway's URL cannot be read ({exc}). Nothing was paid. Correct it.") from exc
        host = parts.hostname
        shown = f"{parts.scheme}://{host}"  # without the user part of the URL: it may hold a password
        if not host or parts.scheme not in ("http", "https"):
            raise InsecureEndpoint(
                f"{shown!r} is not an http(s) URL. Nothing was paid. "
                f"Give the gateway as https://host, for example {GATEWAY_URL}."
            )
        if is_loopback(host):
            return
        if parts.scheme != "https":
            raise InsecureEndpoint(
                f"{shown} is plain http: anybody on the way could redirect payments. Nothing was paid. "
                "Use https (plain http is accepted on loopback only)."
            )
        if not self.allow_private_endpoints and is_private(host):
            raise InsecureEndpoint(
                f"{shown} is a private, link-local or reserved address. Nothing was paid. "
                "If this gateway is yours, set `allow_private_endpoints=True`."
            )

    def check_clock(self, *, now_s: int, server_now_s: int) -> None:
        """Refuse to sign with a clock that disagrees with the gateway's: deadlines would be wrong.

        Raises PolicyRefused.
        """
        skew_s = now_s - server_now_s
        if abs(skew_s) > self.max_clock_skew_s:
            ahead = "ahead of" if skew_s > 0 else "behind"
            raise PolicyRefused(
                f"This clock is {abs(skew_s)} s {ahead} the gateway's (limit {self.max_clock_skew_s} s): a "
                f"signature would live too long or be expired. Nothing was signed. {_CLOCK_ADVICE}"
            )

    def _wrong_payee(self, terms: PaymentTerms, network: Network, payees: Collection[str] | None) -> str | None:
        if payees is not None:
            if _listed(terms.pay_to, payees):
                return None
            return (
                f"it pays {terms.pay_to}, and the registry names {', '.join(payees)} as the payee of this endpoint. "
                "Do not pay it: the gateway, or somebody on the way to it, is not what was registered"
            )
        if _listed(terms.pay_to, network.payees, self.payees):
            return None
        return (
            f"it pays {terms.pay_to}, which is not an allowed payee of {network.name}. "
            "If you trust it, add it to the policy's `payees`"
        )

    def _wrong_facilitator(self, terms: PaymentTerms, network: Network, pinned_facilitator: str | None) -> str | None:
        # Who settles matters only where the signature binds it and lets it choose the amount.
        if terms.scheme != "upto" or terms.facilitator is None:
            return None
        if network.facilitators or self.facilitators:
            if not _listed(terms.facilitator, network.facilitators, self.facilitators):
                return (
                    f"its facilitator {terms.facilitator} is not allowed on {network.name}. "
                    "If you trust it, add it to the policy's `facilitators`"
                )
        elif pinned_facilitator is not None and terms.facilitator != checksum_address(pinned_facilitator):
            return (
                f"its facilitator changed from {pinned_facilitator} (pinned at first use) to "
                f"{terms.facilitator}. If that is intended, add the new one to the policy's `facilitators`"
            )
        return None

    def _too_much(self, terms: PaymentTerms, asset: Asset) -> str | None:
        amount = terms.amount_atomic
        if amount == 0:
            return "its amount is 0, which no settlement accepts"
        if terms.max_timeout_s > self.max_deadline_s:
            return (
                f"its signature would live {terms.max_timeout_s} s; the limit is {self.max_deadline_s} s. "
                "Raise `max_deadline_s` only if you trust the gateway with a signature for so long"
            )
        for name, limit in (
            ("max_per_authorization", self.per_authorization_atomic(asset)),
            ("max_per_day", self.per_day_atomic(asset)),
        ):
            if amount > limit:
                return (
                    f"Call would authorize {asset.format(amount)}; the limit is {asset.format(limit)}. "
                    f"Raise `{name}`, or use a gateway that asks for less"
                )
        per_call = self.per_call_atomic(asset)
        if terms.scheme == "exact" and per_call is not None and amount > per_call:
            return (
                f"Call would cost {asset.format(amount)}; the limit is {asset.format(per_call)}. "
                "Raise `max_per_call`, or pick a cheaper model"
            )
        return None

    def _unwanted(self, terms: PaymentTerms) -> str | None:
        if terms.scheme in self.schemes:
            return None
        return "the policy's `schemes` do not have this way to pay"

    def _preference(self, terms: PaymentTerms) -> tuple[int, int]:
        at = self.schemes.index(terms.scheme) if terms.scheme in self.schemes else len(self.schemes)
        return at, terms.amount_atomic

    def _ties_up(self, terms: PaymentTerms, asset: Asset) -> str | None:
        if terms.channel is None:
            return None
        most = self.deposit_atomic(asset)
        least = max(terms.amount_atomic, terms.channel.min_deposit_atomic)
        if least > most:
            return (
                f"its channel needs a deposit of {asset.format(least)}; the limit is {asset.format(most)}. Raise "
                "`max_deposit`, or use a gateway that asks for less"
            )
        if terms.channel.withdraw_delay_s > self.max_withdraw_delay_s:
            return (
                f"a deposit comes back without its help after {terms.channel.withdraw_delay_s} s; the limit is "
                f"{self.max_withdraw_delay_s} s. Raise `max_withdraw_delay_s` only if you can wait so long"
            )
        if self.max_channels == 0:
            return "the policy allows no channel. Raise `max_channels`"
        return None

    def _drifted(self, terms: PaymentTerms, asset: Asset, before_atomic: int | None, when: str) -> str | None:
        amount = terms.amount_atomic
        if before_atomic is None or amount * 100 <= before_atomic * (100 + self.max_price_increase_percent):
            return None
        return (
            f"it asks for {asset.format(amount)}, after {asset.format(before_atomic)} {when}; the "
            f"limit is an increase of {self.max_price_increase_percent} %. If the new price is right, raise "
            "`max_price_increase_percent`"
        )


def _wrong_place(terms: PaymentTerms, network: Network) -> str | None:
    if terms.chain_id != network.chain_id:
        return f"the client pays on {network.caip2} ({network.name}) only"
    if terms.asset != network.asset.address:
        paid_in = f"{network.asset.symbol} {network.asset.address}"
        return f"it wants token {terms.asset}, the client pays in {paid_in}"
    if terms.transfer_method == "eip3009" and (terms.asset_name, terms.asset_version) != (
        network.asset.name,
        network.asset.version,
    ):
        return (
            f"it names the token {terms.asset_name!r} version {terms.asset_version!r}, which is "
            f"{network.asset.name!r} version {network.asset.version!r}: the signature would be invalid"
        )
    return None


def _other_nonces(terms: PaymentTerms, nonce_space: tuple[str, str] | None) -> str | None:
    if nonce_space is None or (nonce_space == (terms.transfer_method, terms.asset) and terms.channel is None):
        return None
    return "its nonces are kept by another contract, so it could be settled beside the signature that was sent before"


def _schemes(names: Sequence[str]) -> tuple[str, ...]:
    wanted = (names,) if isinstance(names, str) else tuple(names)
    if not wanted or not set(wanted) <= set(SCHEMES) or len(set(wanted)) < len(wanted):
        raise ConfigurationError(
            f"`schemes` is {names!r}; it lists some of {list(SCHEMES)}, the preferred one first. Nothing was paid."
        )
    return wanted


def _listed(address: str, *allow_lists: Collection[str]) -> bool:
    return any(address in allow_list for allow_list in allow_lists)


def _note_foreign_resource(challenge: Challenge, origin: str) -> None:
    # Gateways behind a proxy name an inner URL here, so a difference is worth a line and no refusal.
    asked, named = urlsplit(origin).hostname, urlsplit(challenge.resource_url).hostname
    if asked != named:
        logger.info("The challenge of %s names a resource at another host (%s).", asked, named)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"`{name}` is {value!r}; it must be a whole number. Nothing was paid.")


def _hashes(hashes: Collection[str]) -> frozenset[str]:
    for value in (hashes := frozenset((hashes,)) if isinstance(hashes, str) else hashes):
        if _HASH.fullmatch(value) is None:
            raise ConfigurationError(f"`pcr_hashes`: {value!r} is not 0x and 64 hex digits. Nothing was paid.")
    return frozenset(value.lower() for value in hashes)
