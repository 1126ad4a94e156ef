"""The shape of an audit bundle, checked before anything is made of it: the file may come from anybody.

Types and spelling, field by field (an amount is decimal digits, a hash is 32 bytes in lower-case hex), no field that
is not listed here, and that the records belong together: ids once, no receipt without its authorization, no question
with two answers. Words of gateways may be any text. Does not know whether any of it is true.

`json_schema` is the same for programs in other languages: docs/bundle.schema.json is its output.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.json_schema import SkipJsonSchema

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.money import MAX_UINT256
from opengradient_x402.proofs.attestation import base64_bytes
from opengradient_x402.proofs.bundle import Bundle, canonical_json, channel_id_of
from opengradient_x402.settlement.channels import SCHEME


def _address(text: str) -> str:
    checksum_address(text)
    return text


def _base64(text: str) -> str:
    base64_bytes(text)
    return text


def _uint256(text: str) -> str:
    if int(text) > MAX_UINT256:
        raise ValueError("more than 2^256 - 1")
    return text


_Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$"), AfterValidator(_address)]
_Amount = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,77})$"), AfterValidator(_uint256)]
_Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$"), AfterValidator(_base64)]
_Chain = Annotated[str, StringConstraints(pattern=r"^eip155:[1-9][0-9]{0,15}$")]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
"""More, and a program whose numbers are all floating point would read another one."""
_ChainId = Annotated[int, Field(gt=0, lt=2**53)]
_Hash = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{64}$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
_Signature = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{130}$")]
_Mode = Literal["private", "batch", "individual"]
_Unknown = SkipJsonSchema[None]
"""What is not known is left out of a record, and never null."""


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class _Settlement(_Shape):
    """What authorizations and receipts have in common."""

    network: _Chain
    payer: _Address
    nonce: _Amount
    endpoint: str
    model: str
    settlement_mode: _Mode
    settled_atomic: _Amount | _Unknown = None
    asset_symbol: str | _Unknown = None
    asset_decimals: Annotated[int, Field(ge=0, le=77)] | _Unknown = None
    block_number: _Count | _Unknown = None
    block_hash: _Hash | _Unknown = None
    confirmations: _Count | _Unknown = None
    confirmations_needed: _Count | _Unknown = None
    dispute: str | _Unknown = None


class SignedTermsShape(_Shape):
    scheme: Literal["upto", "exact", "batch-settlement"]
    transfer_method: Literal["permit2", "eip3009"]
    asset: _Address
    payee: _Address
    facilitator: _Address | _Unknown = None
    spender: _Address
    amount_atomic: _Amount
    signed_at: _Count
    deadline: _Count


class VoucherShape(_Shape):
    base_atomic: _Amount
    max_atomic: _Amount
    charged_atomic: _Amount | _Unknown = None


class AuthorizationShape(_Settlement):
    id: _Name
    call_id: _Name
    signed: Annotated[list[SignedTermsShape], Field(min_length=1, max_length=1000)]
    status: Literal["signed", "settled", "expired", "cancelled"]
    tx_hash: _Hash | _Unknown = None
    signature: _Signature | _Unknown = None
    voucher: VoucherShape | _Unknown = None


class ReceiptShape(_Settlement):
    call_id: _Name
    status: Literal["authorized", "served", "settled", "expired", "cancelled", "disputed"]
    created_at: _Count
    outcome: str
    run: str | _Unknown = None
    scheme: Literal["upto", "exact", "batch-settlement"]
    asset: _Address
    payee: _Address
    facilitator: _Address | _Unknown = None
    deadline: _Count
    authorization_id: _Name
    authorized_atomic: _Amount
    authorization_settled_atomic: _Amount | _Unknown = None
    payment_tx_hash: _Hash | _Unknown = None
    prompt_tokens: _Count | _Unknown = None
    completion_tokens: _Count | _Unknown = None
    error: str | _Unknown = None
    cost_atomic: _Amount | _Unknown = None
    estimated_cost_atomic: _Amount | _Unknown = None
    cost_usd: str | _Unknown = None
    opg_usd: str | _Unknown = None
    claimed_payment_tx_hash: str | _Unknown = None
    payment_job: str | _Unknown = None
    data_tx_hash: str | _Unknown = None
    data_settlement_job: str | _Unknown = None
    data_blob_id: str | _Unknown = None
    tee_id: str | _Unknown = None
    tee_timestamp: _Count | _Unknown = None
    tee_request_hash: str | _Unknown = None
    tee_output_hash: str | _Unknown = None
    tee_signature: str | _Unknown = None
    tee_verified: str | _Unknown = None
    tee_uncovered: str | _Unknown = None


class EventShape(_Shape):
    tx_hash: _Hash
    log_index: _Count


class ChannelShape(_Shape):
    id: _Hash
    payer: _Address
    payer_authorizer: _Address
    receiver: _Address
    receiver_authorizer: _Address
    asset: _Address
    withdraw_delay_s: Annotated[int, Field(ge=0, lt=2**40)]
    salt: _Amount
    deposited_atomic: _Amount
    claimed_atomic: _Amount
    returned_atomic: _Amount
    events: list[EventShape]


class DecisionShape(_Shape):
    call_id: _Name
    decision: Literal["approved", "refused", "unanswered"]
    asked_at: _Count
    decided_at: _Count
    endpoint: str
    payee: _Address
    payer: _Address
    network: _Chain
    scheme: Literal["upto", "exact", "batch-settlement"]
    amount_atomic: _Amount
    model: str


class DataSettlementShape(_Shape):
    call_id: _Name
    tx_hash: _Hash
    log_index: _Count


class RpcShape(_Shape):
    chain_id: _ChainId
    method: _Name
    params: list[Any]
    result: Any


class BlobShape(_Shape):
    blob_id: str
    content_base64: _Base64


class AttestationShape(_Shape):
    """An AWS Nitro attestation document, and the key (SubjectPublicKeyInfo) that it is to name."""

    tee_id: _Hash
    document_base64: _Base64
    public_key_base64: _Base64


class SourceShape(_Shape):
    chain_id: _ChainId
    node: str
    block_number: _Count
    block_hash: _Hash


class AssetShape(_Shape):
    address: _Address
    symbol: str
    decimals: Annotated[int, Field(ge=0, le=77)]
    name: str
    version: str


class ContractShape(_Shape):
    address: _Address
    chain_id: _ChainId


class NetworkShape(_Shape):
    name: str
    chain_id: _ChainId
    asset: AssetShape
    permit2: _Address
    upto_proxy: _Address
    exact_proxy: _Address
    relay: ContractShape | _Unknown = None
    registry: ContractShape | _Unknown = None


class PeriodShape(_Shape):
    """The blocks of the payments' chain of which the writer says that all settlements are in the file."""

    from_block: _Count
    to_block: _Count


class PlaceShape(_Shape):
    """The leaf of a record in the ledger's history (RFC 9162), and the way from it to the root."""

    index: _Count
    proof: list[_Hash]


class EarlierShape(_Shape):
    """That the history of `size` records is the beginning of this one."""

    size: _Count
    proof: list[_Hash]


class AnchorShape(_Shape):
    """A head of this history, and the transaction of the payments' chain whose calldata it is."""

    size: Annotated[int, Field(gt=0, lt=2**53)]
    root: _Hash
    tx_hash: _Hash


class HistoryShape(_Shape):
    size: _Count
    root: _Hash
    anchors: Annotated[list[AnchorShape], Field(min_length=1)] | _Unknown = None
    places: list[PlaceShape]
    consistency: list[EarlierShape]


class SignatureShape(_Shape):
    address: _Address
    value: _Signature


class AuthorizationRecord(_Shape):
    kind: Literal["authorization"]
    body: AuthorizationShape


class ReceiptRecord(_Shape):
    kind: Literal["receipt"]
    body: ReceiptShape


class ChannelRecord(_Shape):
    kind: Literal["channel"]
    body: ChannelShape


class DecisionRecord(_Shape):
    kind: Literal["decision"]
    body: DecisionShape


class DataSettlementRecord(_Shape):
    kind: Literal["data_settlement"]
    body: DataSettlementShape


class RpcRecord(_Shape):
    kind: Literal["rpc"]
    body: RpcShape


class BlobRecord(_Shape):
    kind: Literal["blob"]
    body: BlobShape


class AttestationRecord(_Shape):
    kind: Literal["attestation"]
    body: AttestationShape


class SourceRecord(_Shape):
    kind: Literal["source"]
    body: SourceShape


_Record = Annotated[
    AuthorizationRecord
    | ReceiptRecord
    | DecisionRecord
    | ChannelRecord
    | DataSettlementRecord
    | AttestationRecord
    | RpcRecord
    | BlobRecord
    | SourceRecord,
    Field(discriminator="kind"),
]


class BundleShape(_Shape):
    """The whole file."""

    format: Literal["opengradient-audit-bundle/1"]
    created_at: _Count
    network: NetworkShape
    records: list[_Record]
    period: PeriodShape | _Unknown = None
    history: HistoryShape | _Unknown = None
    digest: _Hash
    signature: SignatureShape | _Unknown = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a bundle."""
    schema = BundleShape.model_json_schema()
    _drop_null_defaults(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _drop_null_defaults(schema: Any) -> None:
    """Removes null defaults: a member that is not known is left out, and never null."""
    if isinstance(schema, dict):
        if schema.get("default", 0) is None:
            del schema["default"]
        for value in schema.values():
            _drop_null_defaults(value)
    elif isinstance(schema, list):
        for value in schema:
            _drop_null_defaults(value)


def check_shape(bundle: Bundle) -> None:
    """Raises BundleUnreadable for records that are not what they are called, or do not belong together."""
    try:
        BundleShape.model_validate(document := bundle.document())
        _check_known({name: value for name, value in document.items() if name != "records"})
        for record in bundle.records:
            if record.kind != "rpc":
                _check_known(record.body)
        _check_together(bundle)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _unreadable(f"{place}: {first['msg']}") from exc
    except (ValueError, TypeError) as exc:
        raise _unreadable(str(exc)) from exc


def _check_known(value: Any) -> None:
    if value is None:
        raise ValueError("a field is null, and what is not known is left out")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_known(part)


def _check_together(bundle: Bundle) -> None:
    authorizations = [body["id"] for body in bundle.of_kind("authorization")]
    receipts = bundle.of_kind("receipt")
    calls = [body["call_id"] for body in receipts]
    _check_once("authorization", authorizations)
    _check_once("receipt", calls)
    _check_once("decision", decided := [body["call_id"] for body in bundle.of_kind("decision")])
    history = bundle.history or {}
    _check_once("anchor", [(body["size"], body["root"]) for body in history.get("anchors", ())])
    _check_once("earlier head", [body["size"] for body in history.get("consistency", ())])
    if bundle.period is not None and bundle.period["from_block"] > bundle.period["to_block"]:
        raise ValueError("its period ends before it begins")
    _check_channels(bundle)
    _check_once("data settlement", [body["call_id"] for body in bundle.of_kind("data_settlement")])
    _check_once("answer", [_question(body) for body in bundle.of_kind("rpc")])
    _check_once("blob", [body["blob_id"] for body in bundle.of_kind("blob")])
    _check_once("attestation", [body["tee_id"] for body in bundle.of_kind("attestation")])
    _check_once("source", [body["chain_id"] for body in bundle.of_kind("source")])
    if set(authorizations) != {body["authorization_id"] for body in receipts}:
        raise ValueError("there are receipts without their authorization, or authorizations without a receipt")
    if not {body["call_id"] for body in bundle.of_kind("data_settlement")} <= set(calls):
        raise ValueError("there is a data settlement of a call without a receipt")
    if bundle.history is not None and len(bundle.history["places"]) != len([*authorizations, *calls, *decided]):
        raise ValueError("the history has not one place for every authorization, receipt and decision")


def _check_channels(bundle: Bundle) -> None:
    channels = bundle.of_kind("channel")
    _check_once("channel", [body["id"] for body in (*channels, *bundle.of_kind("authorization"))])
    _check_once("event", [(place["tx_hash"], place["log_index"]) for body in channels for place in body["events"]])
    used = set()
    for body in bundle.of_kind("authorization"):
        schemes = {terms["scheme"] == SCHEME for terms in body["signed"]}
        if schemes != {"voucher" in body}:
            raise ValueError(f"the authorization {body['id']} has only one of voucher and payment channel")
        if "voucher" in body:
            used.add(channel_id_of(body))
    if used != {body["id"] for body in channels}:
        raise ValueError("there are calls without their payment channel, or payment channels without a call")


def _question(body: Any) -> Hashable:
    return body["chain_id"], body["method"], canonical_json(body["params"])


def _check_once(what: str, names: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {name!s:.200} is there twice")
        seen.add(name)


def _unreadable(why: str) -> BundleUnreadable:
    return BundleUnreadable(
        f"The bundle's records cannot be read ({why}). Another version or program made it, or it is made up. "
        "Nothing was proven."
    )
