"""Parameters of JSON-RPC methods: hex text and objects in; numbers, bytes and requests out.

What does not parse is refused with code -32602 and a sentence. Whether a block or an account exists is not checked
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_utils.address import is_address, to_canonical_address

from opengradient_devnet.chain.blocks import hex_data
from opengradient_devnet.chain.calls import CallRequest, StateOverride
from opengradient_devnet.chain.chain import RpcError
from opengradient_devnet.chain.logs import TopicFilter

INVALID_PARAMS = -32602


def invalid(what: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"invalid params: {what}")


def quantity(value: Any, *, what: str = "quantity") -> int:
    """0x-hex (or a JSON integer, which some clients send) to int."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 66:
        raise invalid(f"{what} must be 0x-hex of at most 32 bytes")
    try:
        return int(value, 16)
    except ValueError as exc:
        raise invalid(f"{what} is not hex") from exc


def data(value: Any, *, what: str = "data", size: int | None = None) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise invalid(f"{what} must be 0x-hex")
    try:
        decoded = bytes.fromhex(value[2:])
    except ValueError as exc:
        raise invalid(f"{what} is not hex") from exc
    if size is not None and len(decoded) != size:
        raise invalid(f"{what} must have {size} bytes, it has {len(decoded)}")
    return decoded


def address(value: Any, *, what: str = "address") -> bytes:
    if not isinstance(value, str) or not is_address(value):
        raise invalid(f"{what} is not an address")
    return to_canonical_address(value)


def mapping(value: Any, *, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{what} must be an object")
    return value


def _optional(value: Any, parse: Callable[..., Any], *, what: str) -> Any:
    return None if value is None else parse(value, what=what)


def _parse_overrides(value: Any) -> dict[bytes, StateOverride]:
    overrides = {}
    for key, fields in mapping(value or {}, what="state override").items():
        account = mapping(fields, what="state override")
        slots = account.get("stateDiff") or account.get("state") or {}
        overrides[address(key)] = StateOverride(
            balance=_optional(account.get("balance"), quantity, what="balance"),
            nonce=_optional(account.get("nonce"), quantity, what="nonce"),
            code=_optional(account.get("code"), data, what="code"),
            slots={quantity(at): quantity(word) for at, word in mapping(slots, what="stateDiff").items()},
        )
    return overrides


def parse_call(transaction: Any, overrides: Any = None) -> CallRequest:
    fields = mapping(transaction, what="transaction")
    payload = fields.get("input") or fields.get("data") or "0x"
    gas = _optional(fields.get("gas"), quantity, what="gas")
    return CallRequest(
        sender=_optional(fields.get("from"), address, what="from") or b"\0" * 20,
        to=_optional(fields.get("to") or None, address, what="to") or b"",
        data=data(payload, what="input"),
        value=_optional(fields.get("value"), quantity, what="value") or 0,
        gas=gas or None,
        overrides=_parse_overrides(overrides),
    )


def parse_topics(value: Any) -> list[TopicFilter]:
    if not isinstance(value, list):
        raise invalid("topics must be a list")
    topics: list[TopicFilter] = []
    for item in value:
        choices = item if isinstance(item, list) else [item]
        if item is None or not choices or None in choices:
            topics.append(None)
        else:
            topics.append(tuple(hex_data(data(choice, what="topic", size=32)) for choice in choices))
    return topics
