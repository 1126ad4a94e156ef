"""What is known of one call's payment and proof, and how sure that is.

A receipt is plain data. The gateway's words (cost, data-settlement hashes, TEE fields) are claims; the
payment transaction, its block and the settled amount are facts read from the chain, and stay empty until
they were read. A receipt that a client returned can update itself (`refresh`, `wait_settled`) through its
`Follower`. This module does not know how a receipt is stored (`ledger`) nor how facts are found (`settlement`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import sha256
from importlib import import_module
from operator import attrgetter
from typing import Any, Final, Protocol

from opengradient_x402.addresses import checksum_address
from opengradient_x402.money import amount_in


class ReceiptStatus(StrEnum):
    """Where a receipt stands in its life: `authorized -> served -> settled | expired | cancelled | disputed`."""

    AUTHORIZED = "authorized"
    """Signed (and perhaps sent); no answer is known."""
    SERVED = "served"
    """The gateway answered; the settlement has not been seen on the chain yet."""
    SETTLED = "settled"
    """The settlement was found on the chain; amounts and transaction are facts."""
    EXPIRED = "expired"
    """The deadline passed with the nonce unused: nothing was or can be taken."""
    CANCELLED = "cancelled"
    """The payer invalidated the nonce on the chain: nothing can be taken."""
    DISPUTED = "disputed"
    """The chain and the gateway's claims contradict each other; see `dispute`."""


class Follower(Protocol):
    """Looks a receipt up and reads the chain for it (`Reconciler`)."""

    def recorded(self, receipts: Sequence[SettlementReceipt]) -> Future[list[SettlementReceipt]]: ...
    def refresh(self, receipt: SettlementReceipt, *, timeout_s: float | None) -> SettlementReceipt: ...
    def wait_settled(self, receipt: SettlementReceipt, *, timeout_s: float, must_settle: bool) -> SettlementReceipt: ...
    async def arefresh(self, receipt: SettlementReceipt, *, timeout_s: float | None) -> SettlementReceipt: ...
    async def await_settled(
        self, receipt: SettlementReceipt, *, timeout_s: float, must_settle: bool
    ) -> SettlementReceipt: ...


class _Followed:
    """Keeps the follower beside the data: not a field, so it is in no comparison, repr, copy, pickle or JSON."""

    __slots__ = ("_follower", "_is_timed_out")
    _follower: Follower
    _is_timed_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementReceipt(_Followed):
    """One call, its payment, and its proof.

    Amounts are integer atomic units of `asset`. Times are Unix seconds. `settled_atomic` is this call's share
    of `authorization_settled_atomic`: one authorization may pay for many calls (a session) and settles in one
    transaction; the shares of its calls add up to that transaction exactly.
    """

    call_id: str
    status: ReceiptStatus
    created_at: int
    outcome: str
    """How the call ended: `ok`, `failed`, `abandoned`, or `unknown` while it has not."""

    network: str
    """The CAIP-2 name of the chain."""
    scheme: str
    asset: str
    asset_symbol: str | None = None
    asset_decimals: int | None = None
    """How amounts of the asset are written: `settled_atomic / 10**asset_decimals` whole tokens."""
    payer: str
    payee: str
    facilitator: str | None = None
    authorization_id: str
    nonce: str
    """A decimal number."""
    deadline: int
    authorized_atomic: int
    """The most that the authorization allows, for all of its calls together."""

    endpoint: str
    model: str
    settlement_mode: str
    run: str | None = None
    """The run that made the call: the name that `named_run` gave, else the framework's id of the outermost run.

    None for a call that no run made, and for one whose process was killed before the call had ended.
    """
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    """The class of the error that ended the call; after a whole answer, why a gateway says that it cannot settle."""

    # Claims of the gateway
    cost_atomic: int | None = None
    """What the gateway says that this call cost; `cost_usd` is the same in USD, as decimal text."""
    cost_usd: str | None = None
    opg_usd: str | None = None
    """The price of one token in USD that the gateway calculated with."""
    claimed_payment_tx_hash: str | None = None
    """The transaction that the gateway names as the payment's settlement."""
    payment_job: str | None = None
    """The facilitator's job that will settle the payment, where a gateway names no transaction yet."""
    data_tx_hash: str | None = None
    """The transaction that the gateway names as the settlement of the call's data; `data_blob_id` names its blob."""
    data_settlement_job: str | None = None
    """The facilitator's job that will publish the call's data."""
    data_blob_id: str | None = None
    tee_id: str | None = None
    tee_timestamp: int | None = None
    tee_request_hash: str | None = None
    tee_output_hash: str | None = None
    tee_signature: str | None = None
    tee_verified: str | None = None
    """The verdict over the proof, and where the key was confirmed; None when it was not checked."""
    tee_uncovered: str | None = None
    """What of a verified call the enclave's signature does not cover, separated by commas: `answer.reasoning`, …"""

    # Calculated by this client, where the gateway quotes nothing
    estimated_cost_atomic: int | None = None
    """Usage at the model's published price and the last known token price. Never a reason for a dispute."""

    # Facts of the chain
    settled_atomic: int | None = None
    """What was taken for this call."""
    authorization_settled_atomic: int | None = None
    payment_tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    confirmations: int | None = None
    confirmations_needed: int | None = None
    """With so many blocks, its own included, the settlement is final."""
    dispute: str | None = None
    """What contradicts the gateway, as sentences with the numbers."""

    @property
    def is_final(self) -> bool:
        """Whether nothing further can happen to the money of this receipt: seen, and confirmed often enough."""
        if self.status in (ReceiptStatus.AUTHORIZED, ReceiptStatus.SERVED):
            return False
        return self.confirmations_needed is None or (self.confirmations or 0) >= self.confirmations_needed

    @property
    def payment_hash(self) -> str | None:
        """The payment's transaction under the SDK's name for it; a claim until the chain was read."""
        return self.payment_tx_hash or transaction_claim(self.claimed_payment_tx_hash)

    @property
    def proof_id(self) -> str | None:
        """The id of the enclave's proof (`proof_id_of`); None without a proof."""
        return proof_id_of(self.tee_signature)

    @property
    def is_timed_out(self) -> bool:
        """Whether `wait_settled` gave this receipt back because the time was up, and not because it is final."""
        return getattr(self, "_is_timed_out", False)

    def refresh(self, timeout_s: float | None = None) -> SettlementReceipt:
        """This receipt as the chain has it now. Raises ChainUnavailable, also when that takes longer than this."""
        return self._followed().refresh(self, timeout_s=timeout_s)

    def wait_settled(self, timeout_s: float = 120.0, *, must_settle: bool = False) -> SettlementReceipt:
        """This receipt when it is final. When the time is up, the receipt as it is then, with `is_timed_out`.

        It returns in time, also when the node does not answer. With `must_settle` it raises PaymentOutcomeUnknown
        instead.
        """
        return self._followed().wait_settled(self, timeout_s=timeout_s, must_settle=must_settle)

    async def arefresh(self, timeout_s: float | None = None) -> SettlementReceipt:
        """As `refresh`, for coroutines."""
        return await self._followed().arefresh(self, timeout_s=timeout_s)

    async def await_settled(self, timeout_s: float = 120.0, *, must_settle: bool = False) -> SettlementReceipt:
        """As `wait_settled`, for coroutines."""
        return await self._followed().await_settled(self, timeout_s=timeout_s, must_settle=must_settle)

    def followed_by(self, follower: Follower) -> SettlementReceipt:
        """This same object, able to update itself from now on."""
        object.__setattr__(self, "_follower", follower)
        return self

    @property
    def follower(self) -> Follower | None:
        """Who updates this receipt; None for plain data that nobody asked about yet."""
        return getattr(self, "_follower", None)

    def timed_out(self) -> SettlementReceipt:
        """This same object, marked: the time was up before it was final."""
        object.__setattr__(self, "_is_timed_out", True)
        return self

    def _followed(self) -> Follower:
        if not hasattr(self, "_follower"):  # read back as plain data: the user's settings say where to look
            self.followed_by(_restored().follower_of(self))
        follower: Follower = self._follower
        return follower

    def to_json(self) -> dict[str, str | int]:
        """A flat dict of strings and ints, absent fields left out.

        Amounts (`*_atomic`) are decimal strings, since they exceed what JSON numbers carry safely. Floats and
        Decimals are avoided because LangChain adds numbers up when it merges chunks.
        """
        out: dict[str, str | int] = {}
        for name, value in zip(_FIELD_NAMES, _values_of(self), strict=True):
            if value is not None:
                out[name] = value if value.__class__ is int and name not in _AMOUNTS else str(value)
        return out

    def to_message(self, *, is_whole: bool = False) -> dict[str, str | int]:
        """What a message carries: the call's id and status, its cost, model, mode, payment and proof.

        `payment_hash` names the payment, or `authorization_id` while no transaction is known. About 250 bytes
        as JSON, 50 more where a proof was checked, and never 400: with the keys of `to_json`, `payment_hash`, and
        `cost` for people ("0.0125 OPG").
        Messages are kept and sent many times; the ledger has the rest (`receipt_of`). `is_whole` takes `to_json`.
        """
        if is_whole:
            return self.to_json()
        cost = "cost_atomic" if self.cost_atomic is not None else "estimated_cost_atomic"
        payment = "authorization_id" if self.payment_hash is None else "payment_hash"
        names = ("call_id", "status", cost, "model", "settlement_mode", payment, "tee_verified")
        short: dict[str, str | int] = {name: str(value) for name in names if (value := getattr(self, name)) is not None}
        if cost in short:
            short["cost"] = amount_in(self, getattr(self, cost))
        return short

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SettlementReceipt:
        """The receipt that `to_json` wrote; keys that this version does not know are ignored.

        The short form that messages carry (`to_message`) is looked up in the ledger, which knows the rest. Raises
        ValueError for an address that is none, ConfigurationError (a ValueError) for a call that no ledger knows.
        """
        if "call_id" in data and "network" not in data:
            found: SettlementReceipt = _restored().receipt_of(data["call_id"])
            return found
        known: dict[str, Any] = {name: data[name] for name in _FIELD_NAMES if name in data}
        for name, value in known.items():
            if name.endswith("_atomic"):
                known[name] = int(value)
        for name in _ADDRESSES & known.keys():
            known[name] = None if known[name] is None else checksum_address(known[name])
        known["status"] = ReceiptStatus(known["status"])
        return cls(**known)


def cost_of(receipt: SettlementReceipt) -> int | None:
    """What a call cost, in atomic units: what the chain shows, else the gateway's claim; None while neither is known.

    A payment that expired or was cancelled cost nothing, also when a cost was claimed.
    """
    if receipt.settled_atomic is None and receipt.is_final:
        return 0
    return receipt.cost_atomic if receipt.settled_atomic is None else receipt.settled_atomic


def _restored() -> Any:
    """The module that finds a receipt by its call's id: it imports this one, so it is loaded here."""
    return import_module("opengradient_x402.settlement.restored")


def proof_id_of(tee_signature: object) -> str | None:
    """The id of a proof: SHA-256 of the signature's bytes (hex), the same however the base64 text is written."""
    if not isinstance(tee_signature, str) or not tee_signature:
        return None
    try:
        return sha256(base64.b64decode(tee_signature, validate=True)).hexdigest()
    except ValueError:
        return None


def transaction_claim(text: object) -> str | None:
    """`text` if it names a transaction: 0x and 64 hex digits. None for anything else, such as a job's id."""
    return text if isinstance(text, str) and _TX_HASH.fullmatch(text) is not None else None


_TX_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_FIELD_NAMES = tuple(field.name for field in fields(SettlementReceipt))
_values_of = attrgetter(*_FIELD_NAMES)
_AMOUNTS = frozenset(name for name in _FIELD_NAMES if name.endswith("_atomic"))
_ADDRESSES = {"asset", "payer", "payee", "facilitator"}
