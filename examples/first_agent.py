"""An agent with a budget, whose receipts anybody can verify.

    python examples/first_agent.py

Runs on a devnet with test money. When OG_PRIVATE_KEY is set, it pays from that wallet instead. At the end it writes
an audit bundle to the current folder; `opengradient-x402 receipts verify audit.bundle.json --offline` checks it.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
from langchain.agents import create_agent

from langchain_opengradient import ChatOpenGradient, SpendGuard
from opengradient_x402 import Payments, SpendPolicy, Wallet, load_network
from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.settings import Settings

POLICY = SpendPolicy(max_per_authorization="0.5", max_per_day="1")  # OPG that the wallet may spend
PER_RUN = "0.2"  # OPG that one run of the agent may spend; calls under way count with their worst case
BUNDLE = Path("audit.bundle.json")
QUESTION = 'Look up the token_price of "ETH", then use convert_to_euros on 3150.20 dollars.'


def token_price(symbol: str) -> str:
    """Look up the price of a token by its symbol."""
    return {"ETH": "3150.20 USD", "OPG": "0.20 USD"}.get(symbol.upper(), "unknown")


def convert_to_euros(usd: float) -> str:
    """Convert an amount in US dollars to euros."""
    return f"{usd * 0.92:.2f} EUR"


def open_payments(cleanup: ExitStack) -> Payments:
    """Open the payments of the user's wallet, or of a new wallet on a devnet that is started here."""
    if Settings.load().private_key is not None:
        return Payments.open(policy=POLICY)
    devnet = cleanup.enter_context(DevnetProcess("--idle-timeout=2"))
    account = httpx.post(devnet.network["accounts_url"], json={"opg": "10"}).raise_for_status().json()
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
    return Payments.open(
        network=load_network(devnet.network_file),
        private_key=account["private_key"],
        ledger=folder / "ledger.sqlite",
        policy=POLICY,
    )


def main() -> None:
    """Approve, run the agent, wait for the settlements, export the audit bundle."""
    with ExitStack() as cleanup:
        payments = open_payments(cleanup)
        cleanup.callback(payments.close)
        Wallet(payments.network, payments.signer).ensure_opg_approval(min_allowance="1")

        model = ChatOpenGradient(model="openai/gpt-5-mini", payments=payments, verify_tee="warn")
        agent = create_agent(model, tools=[token_price, convert_to_euros])
        guard = SpendGuard(PER_RUN)
        answer = agent.invoke({"messages": [("user", QUESTION)]}, config={"callbacks": [guard]})
        print(answer["messages"][-1].text)

        print("Waiting until the gateway settles the session on chain …")
        for receipt in guard.receipts:
            final = receipt.wait_settled(timeout_s=150)
            paid = payments.network.asset.format(final.settled_atomic or 0)
            print(f"{final.call_id}  {final.status}  {paid}  {final.payment_hash}")
        bundle = export_bundle(payments.ledger, network=payments.network, signer=payments.signer)
        BUNDLE.write_bytes(bundle.to_bytes())
        print(f"{BUNDLE}: {len(guard.receipts)} receipts with their evidence")


if __name__ == "__main__":
    main()
