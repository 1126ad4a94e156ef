"""A world in which bundles are forged: one wallet with calls of every kind, and what a liar with its key can do.

A liar has the payer's key and ledger: records are changed, the history is made anew over them, and the payer signs.
The lies themselves are in `forgeries`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opengradient_devnet import Devnet
from opengradient_x402.chain.eip712 import permit_digest
from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.chain.questions import receipt as transaction_receipt
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.keys.signer import LocalSigner, Signer
from opengradient_x402.ledger.authorizations import SignedTerms
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.wallet import Wallet
from opengradient_x402.proofs.anchors import anchor_history
from opengradient_x402.proofs.bundle import Bundle, Record
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Statement
from opengradient_x402.proofs.history import IN_HISTORY, described, leaf_hash
from opengradient_x402.settlement.reconciler import Reconciler
from support.ledger_rows import entry
from support.payers import PROMPT, client_for, network_of, payments_for, settled_receipts

ASKING = SpendPolicy(approve_above="0.05", approval=lambda _request: True)
BY_CHANNEL = SpendPolicy(schemes=["batch-settlement"], max_channels=2)
Change = Callable[[Record], "list[Record]"]
TERMS = frozenset(SignedTerms.__slots__)
UNREADABLE = "unreadable"
OTHER = "0x" + "1c" * 20
HASH = "0x" + "77" * 32


@dataclass(frozen=True, kw_only=True)
class World:
    """A devnet, a wallet's ledger, two honest bundles of it, and what others left on the chain."""

    net: Devnet
    payments: Payments
    earlier: Bundle
    bundle: Bundle
    stranger: Signer
    strangers: Bundle
    own_payment: dict[str, Any] = field(repr=False)
    """A transfer to a second wallet of the payer, through the proxy: what an authorization and a receipt say of it.

    The payer invalidated its nonce when it was used already, in `burned_in`."""


@contextmanager
def world(net: Devnet, folder: Path) -> Iterator[World]:
    """Two sessions that settled, one that is open, one authorization that expired, and one that was cancelled.

    Two payment channels too: one with two claims and a call that is not claimed yet, and one with one claim.
    """
    with ExitStack() as stack:
        account, stranger = net.account(opg="20", approved=True), net.account(approved=True)
        payments = stack.enter_context(payments_for(net, account, folder / "l.sqlite", policy=ASKING))
        by_channel = stack.enter_context(payments_for(net, account, folder / "l.sqlite", policy=BY_CHANNEL))
        theirs = stack.enter_context(payments_for(net, stranger, folder / "s.sqlite"))
        theirs_by_channel = stack.enter_context(payments_for(net, stranger, folder / "s.sqlite", policy=BY_CHANNEL))
        with client_for(theirs) as client, client_for(theirs_by_channel) as channel:
            client.chat(_asked("a stranger's question"), settlement_mode="batch")
            channel.chat(_asked("a stranger's question on a channel"), settlement_mode="private")
            net.claim_channels()
            net.flush_batches()
            settled_receipts(net, theirs)
        channel = stack.enter_context(client_for(by_channel))
        with client_for(payments) as client:
            for mode in ("batch", "individual", "private"):
                client.chat(_asked(f"a question in {mode} mode"), settlement_mode=mode)
            for _ in range(2):
                channel.chat(_asked("a question on a channel"), settlement_mode="private")
            net.claim_channels()
            net.flush_batches()
            settled_receipts(net, payments)
            assert client.attest().is_valid
            earlier = export_bundle(payments.ledger, network=payments.network, signer=payments.signer)
            anchor_history(payments.ledger, network=payments.network, signer=payments.signer)
            client.chat(_asked("a later question"), settlement_mode="batch")
            client.chat(_asked("an individual question"), settlement_mode="individual")
            with channel.stream(_asked("a long question, on one channel"), settlement_mode="private") as stream:
                next(iter(stream))
                channel.chat(_asked("a question meanwhile, on another channel"), settlement_mode="private")
                list(stream)
            net.claim_channels()
            net.flush_batches()
            net.close_sessions()
            _end_without_payment(net, payments)
            client.chat(PROMPT)
            channel.chat(_asked("a question that is not claimed yet"), settlement_mode="private")
        yield World(
            net=net,
            payments=payments,
            earlier=earlier,
            bundle=export_bundle(payments.ledger, network=payments.network, signer=payments.signer),
            stranger=theirs.signer,
            strangers=export_bundle(theirs.ledger, network=theirs.network, signer=theirs.signer),
            own_payment=_pay_oneself(net, payments),
        )


def _asked(text: str) -> dict[str, Any]:
    return PROMPT | {"messages": [{"role": "user", "content": text}]}


def _end_without_payment(net: Devnet, payments: Payments) -> None:
    now, network = int(time.time()), network_of(net)
    parties = {
        "payer": payments.payer,
        "payee": net.network["payees"][0],
        "facilitator": net.network["facilitators"][0],
        "network": network.caip2,
    }
    expired = entry(101, **parties, signed_at=now - 2000, deadline=now - 1000)
    cancelled = entry(102, **parties, signed_at=now, deadline=now + 300)
    for authorization in (expired, cancelled):
        payments.ledger.authorize(authorization).result()
    Wallet(network, payments.signer).cancel(cancelled)
    Reconciler(network, payments.ledger).reconcile()


def _pay_oneself(net: Devnet, payments: Payments) -> dict[str, Any]:
    from eth_abi import encode

    network, second = payments.network, LocalSigner(net.account().private_key)
    nonce, deadline, amount = 2**200 + 7, 2**40, 9 * 10**18
    digest = permit_digest(
        chain_id=network.chain_id,
        permit2=network.permit2,
        token=network.asset.address,
        amount_atomic=amount,
        spender=network.upto_proxy,
        nonce=nonce,
        deadline_s=deadline,
        pay_to=second.address,
        facilitator=second.address,
    )
    types = ["((address,uint256),uint256,uint256)", "uint256", "address", "(address,address,uint256)", "bytes"]
    permit = ((network.asset.address, amount), nonce, deadline)
    values = [permit, amount, payments.payer, (second.address, second.address, 0), payments.signer.sign_digest(digest)]
    from opengradient_x402.addresses import keccak256

    data = keccak256(f"settle({','.join(types)})".encode())[:4] + encode(types, values)
    with ChainReader(network.rpc_url, network.chain_id) as chain:
        tx_hash = chain.ask(send_transaction(network, second, to=network.upto_proxy, data=data, what="a payment"))
        done = chain.ask(transaction_receipt(tx_hash))
        burning = keccak256(b"invalidateUnorderedNonces(uint256,uint256)")[:4]
        burning += encode(["uint256", "uint256"], [nonce >> 8, 1 << (nonce & 255)])
        asked = send_transaction(network, payments.signer, to=network.permit2, data=burning, what="a late cancellation")
        burned_in = chain.ask(asked)
    return {
        "nonce": str(nonce),
        "deadline": deadline,
        "amount": str(amount),
        "payee": second.address,
        "tx_hash": tx_hash,
        "burned_in": burned_in,
        "block_number": done.block_number,
        "block_hash": done.block_hash,
    }


# -- forging


def forge(
    bundle: Bundle,
    signer: Signer | None,
    change: Change = lambda record: [record],
    *,
    added: tuple[Record, ...] = (),
    keep_history: bool = False,
    **parts: Any,
) -> bytes:
    """Another bundle, its records passed through `change`; the liar's ledger has the history to go with them."""
    copies = [Record(item.kind, json.loads(json.dumps(dict(item.body)))) for item in bundle.records]
    records = (*(record for item in copies for record in change(item)), *added)
    if not keep_history and "history" not in parts:
        leaves = [leaf_hash(record) for record in records if record.kind in IN_HISTORY]
        kept = [item["size"] for item in (bundle.history or {})["consistency"]]
        parts["history"] = described(leaves, range(len(leaves)), kept)
    forged = replace(bundle, records=records, signature=None, signed_by=None, **parts)
    return (forged if signer is None else forged.signed(signer)).to_bytes()


def setting(kinds: str, where: Callable[[Any], bool] = lambda body: True, **values: Any) -> Change:
    """Sets fields of records (of signed terms too, in an authorization); None removes one."""

    def change(record: Record) -> list[Record]:
        if record.kind not in kinds.split() or not where(record.body):
            return [record]
        terms = {name: value for name, value in values.items() if record.kind == "authorization" and name in TERMS}
        own = {name: value for name, value in values.items() if name not in terms}
        own = {name: value(record.body) if callable(value) else value for name, value in own.items()}
        body = {name: value for name, value in {**record.body, **own}.items() if value is not None}
        if terms:
            terms = {name: value(body) if callable(value) else value for name, value in terms.items()}
            body["signed"] = [{**signed, **terms} for signed in body["signed"]]
        return [Record(record.kind, body)]

    return change


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(record: Record) -> list[Record]:
        records = [record]
        for one in changes:
            records = [after for before in records for after in one(before)]
        return records

    return change


def dropping(kinds: str, where: Callable[[Any], bool] = lambda body: True) -> Change:
    """Leaves records out."""
    return lambda record: [] if record.kind in kinds.split() and where(record.body) else [record]


def settled(body: Any) -> bool:
    """Of a payment that is not on a channel."""
    return body.get("status") == "settled" and not on_channel(body)


def on_channel(body: Any) -> bool:
    return "voucher" in body or body.get("scheme") == "batch-settlement"


def is_open(body: Any) -> bool:
    return body.get("status") in ("signed", "served") and not on_channel(body)


def of_mode(mode: str) -> Callable[[Any], bool]:
    return lambda body: settled(body) and body["settlement_mode"] == mode


def with_status(status: str) -> Callable[[Any], bool]:
    return lambda body: body.get("status") == status


@dataclass(frozen=True, kw_only=True)
class Forgery:
    """One kind of lie: the statement that falls, and what becomes of it."""

    name: str
    falls: Statement | None
    to: str
    make: Callable[[World], bytes]
    why: str = ""


def by(change: Change, **parts: Any) -> Callable[[World], bytes]:
    """The payer's bundle, changed and signed."""
    return lambda w: forge(w.bundle, w.payments.signer, change, **parts)
