"""What one payer remembers of the gateways it deals with, by origin (`https://host:port`).

Whether money may go there at all, what was last paid, who settles, what a token is said to be worth, how often
payments were refused of late, and whether this machine's clock agrees with theirs. Prices and facilitators outlive the
process: they are noted in the ledger. What may be paid is decided elsewhere (`policy`).
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import httpx

from opengradient_x402.addresses import checksum_address
from opengradient_x402.effects import in_thread
from opengradient_x402.errors import ChainUnavailable, NotPaid, PolicyRefused
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.models import find_model, quoted_price, usd_to_atomic
from opengradient_x402.money import QUOTED_IN
from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy

if TYPE_CHECKING:
    from opengradient_x402.ledger.authorizations import SignedTerms
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.payment.call import Call
    from opengradient_x402.payment.challenge import PaymentTerms

BREAKER_LIMIT = 3
"""After this many refused payments in a row, an origin is not called for `BREAKER_PAUSE_S`."""
BREAKER_PAUSE_S = 60.0
BYTES_PER_TOKEN = 2
"""Bytes of a request that count as one token in the worst case of a call: real texts have about four."""
QUOTE_PAUSE_S = 60.0
"""Seconds between two questions to a gateway that does not quote a price."""


class KnownGateways:
    """The gateways of one payer. Thread-safe: the worst race asks the ledger twice."""

    def __init__(self, *, network: Network, policy: SpendPolicy, ledger: Ledger) -> None:
        self._network = network
        self._policy = policy
        self._ledger = ledger
        self._acceptable: set[str] = set()
        self._last_amount: dict[str, int | None] = {}
        self._first_amount: dict[str, tuple[str, int]] = {}
        self._quotes: dict[str, object] = {}
        self._asset_usd: dict[str, Decimal] = {}
        self._usual_usd: dict[str, tuple[str, Decimal]] = {}
        self._noted_prices: dict[str, str] = {}
        self._noted_usd: Future[str | None] | None = None
        self._quote_asked: dict[str, float] = {}
        self._facilitators: dict[str, str] = {}
        self._refusals: dict[str, tuple[int, float]] = {}

    def check_endpoint(self, url: str) -> None:
        """Refuses endpoints that money must not go to, and origins that refused too many payments just now."""
        origin = origin_of_text(url)
        if origin not in self._acceptable:  # scheme and host are all that the policy looks at
            self._policy.check_endpoint(url)
            self._acceptable.add(origin)
        count, until = self._refusals.get(origin, (0, 0.0))
        if count >= BREAKER_LIMIT and time.monotonic() < until:
            raise NotPaid(
                f"{origin} refused {count} payments in a row; calls to it are stopped for "
                f"{until - time.monotonic():.0f} s. Nothing was signed. `opengradient-x402 doctor` shows what is "
                "wrong with wallet, network or gateway.",
                kind="payment",
            )

    # -- prices

    def last_amount(self, origin: str) -> int | None:
        """What was last accepted there, in atomic units."""
        return self._last_amount.get(origin)

    def first_amount(self, origin: str) -> int | None:
        """What was accepted there first today (UTC), in atomic units."""
        day, amount_atomic = self._first_amount.get(origin, ("", 0))
        return amount_atomic if day == _today() else None

    def recall_price(self, origin: str) -> Future[str | None] | None:
        """What this origin last accepted, also from earlier processes; None when it is known here."""
        return None if origin in self._last_amount else self._ledger.noted(self._price_key(origin))

    def recalled_price(self, origin: str, noted: str | None) -> None:
        """Keeps the answer, unless a payment has been accepted meanwhile."""
        if noted is None:
            self._last_amount.setdefault(origin, None)
            return
        last, *first = noted.split()  # older ledgers know only the last amount
        self._last_amount.setdefault(origin, int(last))
        if first:
            self._first_amount.setdefault(origin, (first[0], int(first[1])))
        if len(first) > 2 and (usual := quoted_price(first[3])) is not None:
            self._usual_usd[origin] = (first[2], usual)  # older than all that was quoted to this process

    def _price_key(self, origin: str) -> str:
        return f"price {self._network.caip2} {self._network.asset.address} {origin}"

    def accepted(self, origin: str, *, amount_atomic: int) -> None:
        """A payment to this origin was taken: earlier refusals no longer count.

        Later prices are compared with its amount.
        """
        self._refusals.pop(origin, None)
        if self._noted_usd is None:
            self._noted_usd = self._ledger.noted(self._usd_key())
        if self.first_amount(origin) is None:
            self._first_amount[origin] = (_today(), amount_atomic)
        self._last_amount[origin] = amount_atomic
        self._note_prices(origin)

    def _note_prices(self, origin: str) -> None:
        """Keeps what was accepted there last, what first and when, and what a token was said to be worth first."""
        day, first = self._first_amount[origin]
        text = f"{self._last_amount[origin]} {day} {first}"
        if origin in self._usual_usd:
            text += " {} {}".format(*self._usual_usd[origin])
        if self._noted_prices.get(origin) != text:
            self._noted_prices[origin] = text
            self._ledger.note(self._price_key(origin), text)

    def likely_asset_usd(self, origin: str) -> Decimal | None:
        """What one token is probably worth, for estimates: as this gateway quoted it, as any quoted it last, or as the
        network's file has it. Never waits."""
        if (quoted := self._asset_usd.get(origin)) is not None:
            return quoted
        noted = self._noted_usd
        is_known = noted is not None and noted.done() and not noted.cancelled() and noted.exception() is None
        recalled = quoted_price(noted.result()) if noted is not None and is_known else None
        return recalled or quoted_price(self._network.asset_usd)

    def _usd_key(self) -> str:
        return f"usd {self._network.caip2} {self._network.asset.address}"

    # -- trust

    def disputed(self, origin: str) -> PolicyRefused:
        """The error for a gateway with an open dispute."""
        return PolicyRefused(
            f"A settlement of {origin} is disputed, and nothing more is paid there. Nothing was signed. "
            "`opengradient-x402 receipts list --status disputed` shows why; when it is resolved: "
            f"`opengradient-x402 receipts clear-dispute {origin}`. Or use another gateway.",
        )

    def refused(self, origin: str) -> None:
        """A payment to this origin was refused; after too many in a row, it is not called for a while."""
        count, _ = self._refusals.get(origin, (0, 0.0))
        self._refusals[origin] = (count + 1, time.monotonic() + BREAKER_PAUSE_S)

    def asset_usd(self, origin: str) -> Decimal | None:
        """What this gateway says that one token is worth. A claim."""
        return self._asset_usd.get(origin)

    def wants_quote(self, endpoint: str) -> bool:
        """Whether this gateway has not quoted its token price yet, and was not asked for it within a minute."""
        if self._network.asset.symbol != QUOTED_IN:
            return False
        origin, now = origin_of_text(endpoint), time.monotonic()
        if origin in self._asset_usd or now - self._quote_asked.get(origin, -QUOTE_PAUSE_S) < QUOTE_PAUSE_S:
            return False
        self._quote_asked[origin] = now
        return True

    def note_quote(self, endpoint: str, asset_usd: object) -> None:
        """Keeps what a gateway says that one token is worth, if it is a price at all. A claim."""
        origin = origin_of_text(endpoint)
        today = _today()
        if self._quotes.get(origin) == (asset_usd, today) or (price := quoted_price(asset_usd)) is None:
            return
        self._quotes[origin] = asset_usd, today
        if self._asset_usd.get(origin) != price:
            self._ledger.note(self._usd_key(), str(price))
        self._asset_usd[origin] = price
        day, usual = self._usual_usd.get(origin, ("", price))
        if day != today and self._policy.is_usual(price, usual):
            self._usual_usd[origin] = (today, price)
            if origin in self._first_amount:
                self._note_prices(origin)

    def check_token_price(self, origin: str) -> None:
        """Refuses a gateway whose token price jumped since it was first quoted today, also by earlier processes.

        Raises PolicyRefused.
        """
        quoted, (_, usual) = self._asset_usd.get(origin), self._usual_usd.get(origin, ("", None))
        if quoted is not None and usual is not None and quoted != usual:
            self._policy.check_token_price(quoted, usual, origin=origin)

    # -- who settles

    def worst_case(self, call: Call, origin: str, terms: PaymentTerms | SignedTerms) -> int:
        """The most that a call may cost, in atomic units.

        An `exact` payment costs what is signed. Otherwise it is the published price of the model for the whole prompt
        and all the tokens allowed, at the token price that the gateway quoted last; without a quote it is all that may
        be taken.
        """
        worst = terms.amount_atomic
        if terms.scheme == "exact":
            return worst
        info, asset_usd = find_model(call.model), self.asset_usd(origin)
        if info is not None and asset_usd is not None and call.prompt_bytes:
            usd = info.worst_case_cost_usd(
                prompt_tokens=call.prompt_bytes // BYTES_PER_TOKEN, max_tokens=call.max_tokens
            )
            if usd is not None:
                worst = min(worst, usd_to_atomic(usd, asset_usd=asset_usd, decimals=self._network.asset.decimals))
        return worst

    def estimated(self, receipt: SettlementReceipt) -> SettlementReceipt:
        """The receipt with what the call costs by published prices, if its gateway did not quote it."""
        if receipt.cost_atomic is not None or receipt.prompt_tokens is None or receipt.completion_tokens is None:
            return receipt
        info, asset_usd = find_model(receipt.model), self.likely_asset_usd(origin_of_text(receipt.endpoint))
        if info is None or asset_usd is None:
            return receipt
        usd = info.cost_usd(prompt_tokens=receipt.prompt_tokens, completion_tokens=receipt.completion_tokens)
        if usd is None:
            return receipt
        decimals = self._network.asset.decimals
        return replace(receipt, estimated_cost_atomic=usd_to_atomic(usd, asset_usd=asset_usd, decimals=decimals))

    def facilitator(self, origin: str) -> str | None:
        """The facilitator that is pinned for this origin in this process."""
        return self._facilitators.get(origin)

    def pin_facilitator(self, terms: PaymentTerms, origin: str) -> Future[str] | None:
        """Pins the first facilitator seen, where the network publishes none; None when there is nothing to pin."""
        is_listed = bool(self._network.facilitators or self._policy.facilitators)
        if terms.facilitator is None or is_listed or origin in self._facilitators:
            return None
        return self._ledger.pin(f"facilitator {self._network.caip2} {origin}", terms.facilitator)

    def confirm_facilitator(self, terms: PaymentTerms, origin: str, pinned: str) -> None:
        """Refuses terms whose facilitator is not the one that was pinned before."""
        pinned = self._facilitators[origin] = checksum_address(pinned)
        if terms.facilitator is not None and pinned != terms.facilitator:
            raise PolicyRefused(
                f"{origin} names the facilitator {terms.facilitator}, but {pinned} was pinned at first use. "
                "Nothing was signed. If the change is legitimate, allow it in the policy's `facilitators`."
            )


class Clock:
    """Whether signatures can use this machine's clock: a wrong one makes signatures that live too long, or are expired.

    It agrees with the world when a gateway's `Date` or the chain's time says so. From then on it must move as the
    monotonic clock does; when it has not (it was set, or the machine slept), or when nobody has confirmed it yet, the
    chain is asked. Without an answer nothing is signed. Thread-safe: the worst race asks the chain twice.
    """

    def __init__(self, *, network: Network, policy: SpendPolicy) -> None:
        self._network = network
        self._policy = policy
        self._agreed: tuple[float, float] | None = None
        """Wall and monotonic time at which the clock was last confirmed."""

    def compare(self, date_header: str | None) -> None:
        """Compares with a gateway's `Date`. Raises PolicyRefused when one of the two clocks is wrong."""
        if date_header is None:
            return
        try:
            server_now_s = int(parsedate_to_datetime(date_header).timestamp())
        except (ValueError, OverflowError):
            return
        self._compare(server_now_s)

    def check(self) -> Future[None] | None:
        """None when the clock is known to be right; else a look at the chain, which may raise PolicyRefused."""
        if self._agreed is not None:
            wall, steady = self._agreed
            jumped_s = (time.time() - wall) - (time.monotonic() - steady)
            if abs(jumped_s) <= self._policy.max_clock_skew_s:
                return None
        return in_thread(self._ask_chain, name="opengradient-clock")

    def _ask_chain(self) -> None:
        from opengradient_x402.chain.questions import ChainReader, chain_time

        try:
            chain_now_s = ChainReader.at(self._network).ask(chain_time())
        except ChainUnavailable as exc:
            raise PolicyRefused(
                "This machine's clock could not be checked: the gateway sent no `Date`, or the clock was changed "
                f"since, and the chain did not answer ({exc.message}) Nothing was signed. Try again when the node "
                "answers."
            ) from exc
        self._compare(chain_now_s, whose="the chain's")

    def _compare(self, other_now_s: int, *, whose: str = "the gateway's") -> None:
        self._policy.check_clock(now_s=int(time.time()), server_now_s=other_now_s, whose=whose)
        self._agreed = (time.time(), time.monotonic())


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def origin_of(url: httpx.URL) -> str:
    """Scheme, host and port."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


@lru_cache(maxsize=64)
def origin_of_text(url: str) -> str:
    """As `origin_of`."""
    return origin_of(httpx.URL(url))
