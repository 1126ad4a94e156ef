"""Whether this machine's clock can be signed with: a wrong one makes signatures that live too long, or are expired.

The wall clock agrees with the world when a gateway's `Date` or the chain's time says so. From then on it must move as
the monotonic clock does; when it has not (it was set, or the machine slept), or when nobody has confirmed it yet, the
chain is asked. Without an answer nothing is signed.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from email.utils import parsedate_to_datetime

from opengradient_x402.effects import in_thread
from opengradient_x402.errors import ChainUnavailable, PolicyRefused
from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy


class Clock:
    """The clock of one payer. Thread-safe: the worst race asks the chain twice."""

    def __init__(self, *, network: Network, policy: SpendPolicy) -> None:
        self._network = network
        self._policy = policy
        self._agreed: tuple[float, float] | None = None
        """Wall and monotonic time at which the clock was last confirmed."""

    def heard(self, date_header: str | None) -> None:
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
        self._compare(chain_now_s)

    def _compare(self, other_now_s: int) -> None:
        self._policy.check_clock(now_s=int(time.time()), server_now_s=other_now_s)
        self._agreed = (time.time(), time.monotonic())
