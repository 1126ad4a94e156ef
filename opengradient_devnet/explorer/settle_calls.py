"""Finds signed payments in call data: who authorized what, wherever in a transaction the call is nested.

A facilitator may be a contract, or settle several payments at once, so every occurrence of a settling function's
selector is tried. Whether the transaction succeeded is not checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from opengradient_devnet.contracts import OPG, Contract, contract, signature_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleCall:
    """One authorization as it was put on chain. `nonce` is a number; EIP-3009 writes it as bytes32."""

    method: str
    payer: str
    pay_to: str
    asset: str
    amount_atomic: int
    signed_atomic: int
    nonce: int
    deadline_s: int
    facilitator: str | None


_SETTLING = (
    ("UptoProxy", ("settle", "settleWithPermit")),
    ("ExactProxy", ("settle", "settleWithPermit")),
    ("OPG", ("transferWithAuthorization", "receiveWithAuthorization")),
)


@cache
def _selectors() -> dict[bytes, Contract]:
    found: dict[bytes, Contract] = {}
    for name, functions in _SETTLING:
        entries = [entry for entry in contract(name).abi if entry["type"] == "function" and entry["name"] in functions]
        found |= {contract(name).selector(signature_of(entry)): contract(name) for entry in entries}
    return found


def settle_calls(data: bytes) -> list[SettleCall]:
    """Every settlement in one transaction's input, in order."""
    return [call for selector, where in _selectors().items() for call in _decoded(data, selector, where)]


def _decoded(data: bytes, selector: bytes, where: Contract) -> Iterator[SettleCall]:
    position = data.find(selector)
    while position >= 0:
        try:
            arguments = where.decode_call(data[position:])["arguments"]
        except (DecodingError, OverflowError):
            arguments = None  # four bytes that only look like a selector
        if arguments is not None:
            yield _by_transfer(arguments) if where.name == "OPG" else _by_permit2(arguments, where=where)
        position = data.find(selector, position + 1)


def _by_permit2(arguments: dict[str, Any], *, where: Contract) -> SettleCall:
    permit, witness = arguments["permit"], arguments["witness"]
    signed_atomic = permit["permitted"]["amount"]
    facilitator = witness.get("facilitator")
    return SettleCall(
        method="upto, Permit2" if where.name == "UptoProxy" else "exact, Permit2",
        payer=to_checksum_address(arguments["owner"]),
        pay_to=to_checksum_address(witness["to"]),
        asset=to_checksum_address(permit["permitted"]["token"]),
        amount_atomic=arguments.get("amount", signed_atomic),
        signed_atomic=signed_atomic,
        nonce=permit["nonce"],
        deadline_s=permit["deadline"],
        facilitator=to_checksum_address(facilitator) if facilitator else None,
    )


def _by_transfer(arguments: dict[str, Any]) -> SettleCall:
    return SettleCall(
        method="exact, EIP-3009",
        payer=to_checksum_address(arguments["from"]),
        pay_to=to_checksum_address(arguments["to"]),
        asset=OPG,
        amount_atomic=arguments["value"],
        signed_atomic=arguments["value"],
        nonce=int.from_bytes(arguments["nonce"], "big"),
        deadline_s=arguments["validBefore"],
        facilitator=None,
    )
