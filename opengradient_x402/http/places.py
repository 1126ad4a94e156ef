"""Where an address leads, however it is written: into the public internet, or into somebody's own network.

Resolvers take more for an address than `ip_address` does (numbers, hex and octal digits, digits of other scripts), and
IPv6 has several forms that lead to an IPv4 address. It does not
resolve names: the transports check the addresses that they connect to.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import httpx

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+", re.ASCII)
_CARRIES_IPV4: Final = tuple(
    map(IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)  # RFC 4291, 2765, 6052, 8215: the last 32 bits are the IPv4 address
_NOT_PUBLIC: Final = tuple(map(IPv6Network, ("fec0::/10", "3fff::/20", "5f00::/16")))  # RFC 3879, 9637, 9602
_MOST_PARTS: Final = 4
_MOST_DIGITS: Final = 11
"""Of 32 bits: in octal they have the most."""


def address_in(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a URL's host is, in any spelling that a resolver may take for one; None for a name."""
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".").strip("[]").partition("%")[0].rstrip(".")
    try:
        return ip_address(plain)
    except ValueError:
        return _as_numbers(plain.split("."))


def _as_numbers(parts: list[str]) -> IPv4Address | None:
    """As `inet_aton` reads it: the last part is all that is left of the 32 bits."""
    if len(parts) > _MOST_PARTS or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    numbers = [number for part in parts if (number := _number(part)) is not None]
    if len(numbers) < len(parts):
        return None
    value = numbers.pop()
    for at, number in enumerate(numbers):
        value += number << 8 * (3 - at)
    return IPv4Address(value) if value < 1 << 32 else None


def _number(text: str) -> int | None:
    """None when it has more digits than an address can have (zeros in front do not count)."""
    if text[:2].lower() == "0x":
        digits, base = text[2:], 16
    else:
        digits, base = text, 8 if text.startswith("0") and set(text) <= set("01234567") else 10
    digits = digits.lstrip("0") or "0"
    return int(digits, base) if len(digits) <= _MOST_DIGITS else None


def is_private(host: str) -> bool:
    """Whether the host is an address, in any spelling, that is not of the public internet. False for a name."""
    address = address_in(host)
    return address is not None and not is_public(address)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is of the public internet; one that carries an IPv4 address leads where that one leads."""
    if isinstance(address, IPv6Address) and (inner := _carried(address)) is not None:
        return is_public(inner)
    if any(address in network for network in _NOT_PUBLIC if address.version == network.version):
        return False
    return address.is_global and not address.is_multicast


def _carried(address: IPv6Address) -> IPv4Address | None:
    if address in (IPv6Address("::"), IPv6Address("::1")):
        return None
    known = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if known is None and any(address in network for network in _CARRIES_IPV4):
        known = IPv4Address(int(address) & 0xFFFF_FFFF)
    return known


class LeadsHome(httpx.ConnectError, OSError):
    """A name that must lead into the public internet leads to a private address. Nothing was sent there."""


class LeadsAway(httpx.ConnectError, OSError):
    """A name that must lead to this machine leads to another one. Nothing was sent there."""


def check_resolved(resolved: Iterable[tuple[Any, ...]], *, is_far: bool, is_secure: bool) -> None:
    """Raises LeadsHome or LeadsAway when a name has led to a socket address that it must not lead to.

    One that `is_far` leads into the public internet. Without TLS, a name leads to this machine: `localhost` and the
    names below it are only names, and a resolver may know other addresses for them.
    """
    for host, *_ in resolved:
        address = address_in(str(host))
        if is_far and address is not None and not is_public(address):
            raise LeadsHome(f"the name leads to {host}, which is not of the public internet")
        if not is_secure and address is not None and not _is_here(address):
            raise LeadsAway(f"the name leads to {host}, which is not this machine, and plain http is for this one only")


def _is_here(address: IPv4Address | IPv6Address) -> bool:
    inner = _carried(address) if isinstance(address, IPv6Address) else None
    return (inner or address).is_loopback
