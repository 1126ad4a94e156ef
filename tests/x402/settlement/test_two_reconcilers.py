"""Two processes bring one ledger forward at once, over nodes that disagree: what is final stays."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.settlement.reconciler import Reconciler
from support.ledger_rows import entry
from support.node import serving, without_multicall
from support.payers import PROMPT, client_for, opg_balance, payments_for

_NONCE_BITMAP = "0x4fe02b44"


def test_a_node_on_another_fork_does_not_undo_what_another_process_found_meanwhile(net, account, tmp_path):
    file, before, has_other_looked = tmp_path / "l.sqlite", opg_balance(net, account.address), threading.Event()
    with payments_for(net, account, file) as payments, client_for(payments) as client, serving(net.chain) as node:
        client.chat(PROMPT)
        deadline = payments.ledger.authorizations().result()[0].deadline

        def forked(method, params, number):
            """Its blocks are later than the deadline, and nobody settled anything there."""
            if method == "eth_getBlockByNumber" and params[0] == "latest":
                return 200, {"result": net.chain.rpc(method, params) | {"timestamp": hex(deadline + 100)}}
            if method == "eth_call" and params[0].get("data", "").startswith(_NONCE_BITMAP):
                if not has_other_looked.is_set():
                    has_other_looked.set()
                    net.close_sessions()
                    with_right_node.reconcile()
                return 200, {"result": "0x" + "0" * 64}
            return without_multicall(method, params, number)

        node.misbehave = forked
        other = Ledger(file)
        with_right_node = Reconciler(payments.network, other)
        Reconciler(replace(payments.network, rpc_url=node.url), payments.ledger).reconcile()
        assert has_other_looked.is_set()
        (receipt,) = payments.ledger.receipts().result()
        taken = before - opg_balance(net, account.address)
        assert (receipt.status, receipt.is_final, receipt.settled_atomic) == (ReceiptStatus.SETTLED, True, taken)
        asset = payments.network.asset.address
        assert (
            payments.ledger.spent(payer=payments.payer, asset=asset, network=payments.network.caip2).result() == taken
        )
        other.close()


_SETTLED = {
    "status": "settled",
    "settled_atomic": 7,
    "tx_hash": "0x" + "11" * 32,
    "block_number": 5,
    "block_hash": "0x" + "22" * 32,
    "confirmations_needed": 3,
}
_EXPIRED = {"status": "expired", "confirmations": 0, "confirmations_needed": 0}


@pytest.mark.parametrize(
    ("known", "late"),
    [
        (_SETTLED | {"confirmations": 3}, _EXPIRED | {"recheck_at": int(time.time()) + 86_400}),
        (_SETTLED | {"confirmations": 3}, _EXPIRED | {"recheck_at": None}),
        (_SETTLED | {"confirmations": 3}, _SETTLED | {"confirmations": 1}),
        (_SETTLED | {"confirmations": 3}, {"status": "signed"}),
        (_SETTLED | {"confirmations": 1}, _EXPIRED),
        (_SETTLED | {"status": "cancelled", "settled_atomic": None, "confirmations": 3}, _EXPIRED),
    ],
)
def test_an_answer_that_comes_late_takes_nothing_back(tmp_path, known, late):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1)).result()
    assert ledger.record_settlement(replace(entry(1), **known)).result()
    (before,) = ledger.authorizations().result()
    assert not ledger.record_settlement(replace(entry(1), **late)).result()
    assert ledger.authorizations().result() == [before]
    ledger.close()


@pytest.mark.parametrize(
    ("known", "news"),
    [
        (_SETTLED | {"confirmations": 1}, {"status": "signed"}),  # its block is gone
        (_SETTLED | {"confirmations": 1}, _SETTLED | {"confirmations": 3}),
        (_EXPIRED, _SETTLED | {"confirmations": 3}),
        (_SETTLED | {"confirmations": 3}, _SETTLED | {"confirmations": 3, "settled_atomic": 9}),  # a channel's
    ],
)
def test_what_is_new_is_recorded(tmp_path, known, news):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1)).result()
    ledger.record_settlement(replace(entry(1), **known)).result()
    ledger.record_settlement(replace(entry(1), **news)).result()
    (now,) = ledger.authorizations().result()
    assert (now.status, now.settled_atomic) == (news["status"], news.get("settled_atomic"))
    ledger.close()
