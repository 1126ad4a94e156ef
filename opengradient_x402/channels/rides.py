"""Which call rides on which channel in this process, and what its gateway says that it cost.

A channel serves one call at a time. What is known of channels is in the ledger (`book`); this module only knows who
uses them now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final

from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.channels.vouchers import charge_of, id_of
from opengradient_x402.keys.signer import Signer
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network

_TIDY_EVERY_S: Final = 3600.0


@dataclass(slots=True, eq=False)
class Ride:
    """A call's seat on a channel, with the voucher that pays for the call once that is in the ledger."""

    channel: Channel
    voucher: Voucher | None = None
    deposit: Deposit | None = None
    """The deposit that goes along with the voucher."""
    has_left: bool = False
    is_over: bool = False
    is_found: bool = False
    """Whether the ledger did not know the channel, and the chain had it: another one may have used it."""
    dispute: str | None = None
    """Why the gateway's word on the charge is not believed."""


class Rides:
    """The seats of one payer. Thread-safe; never waits itself."""

    def __init__(self, *, network: Network, signer: Signer, ledger: Ledger) -> None:
        self.book = ChannelBook(ledger)
        self._network = network
        self._signer = signer
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._taken: dict[str, int] = {}
        self._waiting: list[Future[None]] = []
        self._arrived: set[str] = set()
        self._tidied_s: float | None = None

    def numbered(self, channel: Channel, number: int) -> Channel:
        """The channel with this number at its gateway: its salt follows from the key, so no channel is ever lost."""
        salt = self._signer.nonce_for(f"channel {number} of {channel.endpoint}")
        salted = replace(channel, salt=salt)
        return replace(salted, id=id_of(salted, self._network))

    def take(self, channel: Channel) -> Ride | None:
        """A seat on the channel; None while another call has it."""
        with self._lock:
            if channel.id in self._taken:
                return None
            self._taken[channel.id] = threading.get_ident()
            return Ride(channel)

    def change(self) -> Future[None]:
        """A future that is done when a seat becomes free."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append(future)
        return future

    def are_held_here(self, channels: Iterable[Channel]) -> bool:
        """Whether this very thread has all of these seats: waiting for one would never end."""
        here = threading.get_ident()
        with self._lock:
            return all(self._taken.get(channel.id) == here for channel in channels)

    def has_arrived(self, channel: Channel) -> bool:
        """Whether the gateway said that the deposit which is out has been collected; the chain may show it later."""
        return channel.id in self._arrived

    def may_tidy(self) -> bool:
        """Whether it is time to take back what is idle, as it is once an hour; then it counts as begun."""
        now_s = time.monotonic()
        with self._lock:
            if self._tidied_s is not None and now_s - self._tidied_s < _TIDY_EVERY_S:
                return False
            self._tidied_s = now_s
            return True

    def leave(self, ride: Ride, *, is_free: bool = False) -> None:
        """The seat is free, for other processes too; `is_free` says that they know. Leaving twice changes nothing."""
        with self._lock:
            if ride.is_over:
                return
            ride.is_over = True
            self._taken.pop(ride.channel.id, None)
            waiting, self._waiting = self._waiting, []
        if ride.voucher is not None and not is_free:
            self.book.free(ride.channel.id)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def end(self, ride: Ride, claims: Mapping[str, Any]) -> dict[str, Any]:
        """Records what the call was charged, if that can be believed, and frees the seat.

        Returns the claims with the charge as `amount`, or without any amount; never with a transaction, which can only
        be that of a deposit.
        """
        voucher, kept = (
            ride.voucher,
            {name: value for name, value in claims.items() if name not in ("amount", "transaction")},
        )
        has_failed = claims.get("success") is False  # it charges nothing then: the next sum will show it
        is_known = False
        if voucher is not None and claims and not has_failed and not ride.is_over:
            said = charge_of(claims, base_atomic=voucher.base_atomic, max_atomic=voucher.max_atomic)
            if isinstance(said, str):
                ride.dispute = f"The gateway's word on this call is not believed: {said}."
            else:
                self.book.charge(voucher, said)
                is_known = True
                kept["amount"] = str(said)
                if ride.deposit is not None and claims.get("transaction"):
                    self._arrived.add(ride.channel.id)
        self.leave(ride, is_free=is_known)
        return kept

    def renew(self) -> None:
        """Forgets who rides: this is a forked child, and they are in the parent."""
        self._lock = threading.RLock()
        self._taken, self._waiting = {}, []
        self.book.renew()
