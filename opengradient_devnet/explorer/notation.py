"""How single values are written: amounts, times, hashes, and addresses with the names that people know."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eth_utils.address import to_checksum_address

from opengradient_devnet.explorer.markup import Html, element, fragment
from opengradient_devnet.money import OPG_TOKEN

BASE = "/explorer"
UNLIMITED = 2**256 - 1
_ZERO = "0x" + "0" * 40
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def link(path: str, *children: Html | str, title: str | None = None, class_: str | None = None) -> Html:
    """A link inside the explorer."""
    return element("a", *children, href=f"{BASE}{path}", title=title, class_=class_)


def short(text: str, *, head: int = 10, tail: int = 6) -> str:
    """`0x12345678…abcdef`."""
    return text if len(text) <= head + tail + 1 else f"{text[:head]}…{text[-tail:]}"


def opg_column(amounts_atomic: Sequence[int]) -> list[Html]:
    """Amounts of one column: the points of all stand below each other."""
    lengths = [tuple(map(len, OPG_TOKEN.text(amount).partition("."))) for amount in amounts_atomic]
    before, _, behind = (max(sizes) for sizes in zip(*lengths, strict=True)) if lengths else (0, 0, 0)
    return [
        opg(amount, room=(before - whole, behind - fraction))
        for amount, (whole, _, fraction) in zip(amounts_atomic, lengths, strict=True)
    ]


def opg(amount_atomic: int, *, room: tuple[int, int] = (0, 0)) -> Html:
    """An amount of OPG, exact; all digits of it, with `room` for so many more before and behind them."""
    if amount_atomic >= UNLIMITED // 2:
        return element("span", "unlimited", class_="amount", title=f"{amount_atomic} atomic units")
    digits, (before, behind) = OPG_TOKEN.text(amount_atomic), room
    shown = element("span", digits, class_=f"before-{before} behind-{behind}") if before or behind else digits
    return element("span", shown, element("small", " OPG"), class_="amount", title=f"{amount_atomic} atomic units")


def number(value: int) -> str:
    """Digits in groups of three."""
    return f"{value:,}".replace(",", "\u202f")


def counted(value: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number(value)} {noun}" + ("" if value == 1 else "s")


def utc(time_s: float) -> str:
    """`2026-11-21 10:15:04 UTC`; times that no calendar has stay numbers."""
    try:
        return f"{dt.datetime.fromtimestamp(time_s, tz=dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return str(int(time_s))


def badge(text: str, *, tone: str = "plain") -> Html:
    """A word in a pill; tones are `good`, `bad`, `busy` and `plain`."""
    return element("span", text, class_=f"badge {tone}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """Notation that depends on when and where: `now_s`, and `labels` by lower-case address."""

    now_s: float
    labels: Mapping[str, str]

    def time(self, time_s: float) -> Html:
        """How long ago (or ahead), with the time itself on hovering."""
        return element("time", self.age(time_s), title=utc(time_s))

    def age(self, time_s: float) -> str:
        distance_s = int(self.now_s - time_s)
        if abs(distance_s) < 1:
            return "now"
        size, unit = next(step for step in _AGES if abs(distance_s) >= step[0])
        amount = f"{abs(distance_s) // size} {unit}"
        return f"{amount} ago" if distance_s > 0 else f"in {amount}"

    def address(self, address: str | None, *, whole: bool = False) -> Html:
        """A link to an account, under its label when it has one."""
        if address is None:
            return element("span", "new contract", class_="muted")
        if address == _ZERO:
            return element("span", "nobody", class_="muted", title=address)
        address = to_checksum_address(address)
        label = self.labels.get(address.lower())
        shown = fragment(element("span", label, class_="label"), " ") if label else None
        text = element("code", address if whole else short(address, head=8, tail=4))
        if label and not whole:
            return link(f"/address/{address}", element("span", label, class_="label"), title=address)
        return fragment(shown, link(f"/address/{address}", text, title=address))

    def transaction(self, tx_hash: str, *, whole: bool = False) -> Html:
        return link(f"/tx/{tx_hash}", element("code", tx_hash if whole else short(tx_hash)), title=tx_hash)

    def block(self, block_number: int) -> Html:
        return link(f"/block/{block_number}", number(block_number))

    def blob(self, blob_id: str) -> Html:
        return link(f"/blob/{blob_id}", element("code", short(blob_id, head=8, tail=4)), title=blob_id)

    def session(self, mark: str) -> Html:
        return element("code", mark, title="the beginning of SHA-256 of the session id; the id itself spends money")

    def hash(self, value: bytes | str) -> Html:
        text = value if isinstance(value, str) else "0x" + value.hex()
        return element("code", short(text), title=text)
