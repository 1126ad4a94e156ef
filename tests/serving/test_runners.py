"""What runners do to processes: however they fork, recycle or kill them, answers, receipts, ledger and chain agree."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import network_of, opg_balance

pytestmark = pytest.mark.devnet(pace_s=0.002)
CALLS = 100
DRIVERS = Path(__file__).parent / "runners"


@pytest.mark.parametrize(
    ("driver", "requirements", "options"),
    [
        ("uvicorn", "uvicorn", {}),
        ("container", "uvicorn", {}),
        ("gunicorn", "gunicorn", {}),
        ("celery", "celery", {"pool": "prefork"}),
        ("celery", "celery", {"pool": "threads"}),
        ("rq", "rq", {}),
        ("streamlit", "streamlit", {}),
        ("langgraph", "langgraph", {}),
    ],
    ids=["uvicorn", "container", "gunicorn", "celery-prefork", "celery-threads", "rq", "streamlit", "langgraph"],
)
def test_every_answer_is_paid_for_recorded_and_settled(net, environment, tmp_path, driver, requirements, options):
    account = net.account(opg="50", approved=True)
    before = opg_balance(net, account.address)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    env = {"OG_PRIVATE_KEY": account.private_key, "OG_NETWORK": f"{net.gateway_url}/network", "OG_LEDGER_URL": url}
    venv, began = environment(requirements), time.monotonic()
    told = venv.run(
        DRIVERS / f"run_{driver}.py",
        {"calls": CALLS, "folder": str(tmp_path), "env": env, **options},
        timeout_s=500,
    )
    took_s = time.monotonic() - began
    answers = told["answers"]
    assert len(set(answers)) == len(answers) >= CALLS
    net.close_sessions()
    ledger = Ledger(url)
    Reconciler(network_of(net), ledger).reconcile()
    receipts = {receipt.call_id: receipt for receipt in ledger.receipts().result()}
    authorizations = ledger.authorizations().result()
    ledger.close()
    # Receipts: one for each answer that was given out.
    assert set(answers) <= set(receipts), set(answers) - set(receipts)
    # Whatever was killed, an honest settlement is no overcharge.
    assert [receipt.dispute for receipt in receipts.values() if receipt.status is ReceiptStatus.DISPUTED] == []
    assert {receipts[call].status for call in answers} == {ReceiptStatus.SETTLED}
    assert {receipts[call].outcome for call in answers} == {"ok"}
    # Other calls are those that were killed, or whose answer broke off on its way.
    others = [receipt for call, receipt in receipts.items() if call not in set(answers)]
    assert len(others) <= told.get("killed", 0) + told.get("broken", 0)
    # Ledger and chain: what was settled is what left the wallet, and receipts share it out to the last unit.
    spent = before - opg_balance(net, account.address)
    assert sum(one.settled_atomic or 0 for one in authorizations) == spent
    assert sum(receipt.settled_atomic or 0 for receipt in receipts.values()) == spent
    counts = f"{len(answers)} answers, {len(others)} others, {len(authorizations)} payments"
    print(f"\n{driver} {options}: {counts}, {took_s:.0f} s")
