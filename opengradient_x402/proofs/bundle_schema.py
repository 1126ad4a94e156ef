"""The shape of what is in an audit bundle, checked before anything is made of it: the file may come from anybody.

Types and spelling, field by field (an amount is decimal digits, a hash is 32 bytes in lower-case hex), and that the
records belong together: ids once, no receipt without its authorization, no question with two answers. Words of
gateways may be any text. Does not know whether any of it is true.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Hashable, Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.money import MAX_UINT256
from opengradient_x402.proofs.bundle import Bundle


def _address(text: str) -> str:
    checksum_address(text)
    return text


def _base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


def _uint256(text: str) -> str:
    if int(text) > MAX_UINT256:
        raise ValueError("more than 2^256 - 1")
    return text


_Address = Annotated[str, AfterValidator(_address)]
_Amount = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,77})$"), AfterValidator(_uint256)]
_Chain = Annotated[str, StringConstraints(pattern=r"^eip155:[1-9][0-9]{0,18}$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Hash = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{64}$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
_Mode = Literal["private", "batch", "individual"]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)


class _Settlement(_Shape):
    """What authorizations and receipts have in common."""

    network: _Chain
    payer: _Address
    nonce: _Amount
    endpoint: str
    model: str
    settlement_mode: _Mode
    settled_atomic: _Amount | None = None
    asset_symbol: str | None = None
    asset_decimals: Annotated[int, Field(ge=0, le=77)] | None = None
    block_number: _Count | None = None
    block_hash: _Hash | None = None
    confirmations: _Count | None = None
    confirmations_needed: _Count | None = None
    dispute: str | None = None


class _SignedTerms(_Shape):
    scheme: Literal["upto", "exact"]
    transfer_method: Literal["permit2", "eip3009"]
    asset: _Address
    payee: _Address
    facilitator: _Address | None = None
    spender: _Address
    amount_atomic: _Amount
    signed_at: _Count
    deadline: _Count


class _Authorization(_Settlement):
    id: _Name
    call_id: _Name
    signed: Annotated[list[_SignedTerms], Field(min_length=1)]
    status: Literal["signed", "settled", "expired", "cancelled"]
    tx_hash: _Hash | None = None


class _Receipt(_Settlement):
    call_id: _Name
    status: Literal["authorized", "served", "settled", "expired", "cancelled", "disputed"]
    created_at: _Count
    outcome: str
    scheme: Literal["upto", "exact"]
    asset: _Address
    payee: _Address
    facilitator: _Address | None = None
    deadline: _Count
    authorization_id: _Name
    authorized_atomic: _Amount
    authorization_settled_atomic: _Amount | None = None
    payment_tx_hash: _Hash | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    cost_atomic: _Amount | None = None
    estimated_cost_atomic: _Amount | None = None
    cost_usd: str | None = None
    opg_usd: str | None = None
    claimed_payment_tx_hash: str | None = None
    payment_job: str | None = None
    data_tx_hash: str | None = None
    data_settlement_job: str | None = None
    data_blob_id: str | None = None
    tee_id: str | None = None
    tee_timestamp: _Count | None = None
    tee_request_hash: str | None = None
    tee_output_hash: str | None = None
    tee_signature: str | None = None
    tee_verified: str | None = None


class _DataPlace(_Shape):
    call_id: _Name
    tx_hash: _Hash
    log_index: _Count


class _RpcAnswer(_Shape):
    chain_id: _Count
    method: _Name
    params: list[Any]
    result: Any


class _Document(_Shape):
    url: str
    content_base64: Annotated[str, AfterValidator(_base64)]


class _Asset(_Shape):
    address: _Address
    symbol: str
    decimals: Annotated[int, Field(ge=0, le=77)]
    name: str
    version: str


class _Contract(_Shape):
    address: _Address
    chain_id: _Count


class _Network(_Shape):
    name: str
    chain_id: Annotated[int, Field(gt=0, lt=2**63)]
    confirmations: Annotated[int, Field(ge=1, lt=2**31)]
    asset: _Asset
    permit2: _Address
    upto_proxy: _Address
    exact_proxy: _Address
    relay: _Contract | None
    registry: _Contract | None
    blob_url: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]{1,512}$")] | None


class _Header(_Shape):
    created_at: _Count
    network: _Network


_SHAPES: Final[dict[str, type[_Shape]]] = {
    "authorization": _Authorization,
    "receipt": _Receipt,
    "data_settlement": _DataPlace,
    "rpc": _RpcAnswer,
    "document": _Document,
}


def check_shape(bundle: Bundle) -> None:
    """Raises BundleUnreadable for records that are not what they are called, or do not belong together."""
    try:
        _Header.model_validate({"created_at": bundle.created_at, "network": bundle.network})
        for record in bundle.records:
            if record.kind not in _SHAPES:
                raise ValueError(f"no record is a {record.kind!r}")
            if record.kind != "rpc" and None in record.body.values():
                raise ValueError(f"a field of a {record.kind} is null, and what is not known is left out")
            _SHAPES[record.kind].model_validate(record.body)
        _check_together(bundle)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _unreadable(f"{exc.title.lstrip('_')} {place}: {first['msg']}") from exc
    except (ValueError, TypeError) as exc:
        raise _unreadable(str(exc)) from exc


def _check_together(bundle: Bundle) -> None:
    authorizations = [body["id"] for body in bundle.of_kind("authorization")]
    receipts = bundle.of_kind("receipt")
    calls = [body["call_id"] for body in receipts]
    _check_once("authorization", authorizations)
    _check_once("receipt", calls)
    _check_once("data settlement", [body["call_id"] for body in bundle.of_kind("data_settlement")])
    _check_once("answer", [_question(body) for body in bundle.of_kind("rpc")])
    _check_once("document", [body["url"] for body in bundle.of_kind("document")])
    if set(authorizations) != {body["authorization_id"] for body in receipts}:
        raise ValueError("there are receipts without their authorization, or authorizations without a receipt")
    if not {body["call_id"] for body in bundle.of_kind("data_settlement")} <= set(calls):
        raise ValueError("there is a data settlement of a call without a receipt")


def _question(body: Any) -> Hashable:
    return body["chain_id"], body["method"], json.dumps(body["params"], sort_keys=True)


def _check_once(what: str, names: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {name} is there twice")
        seen.add(name)


def _unreadable(why: str) -> BundleUnreadable:
    return BundleUnreadable(
        f"The bundle's records cannot be read ({why}). It was made by another version or program, or made up. Nothing "
        "was proven."
    )
