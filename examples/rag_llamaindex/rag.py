"""Answers questions about a small town from its documents, with a paid model and a receipt for every call.

    python examples/rag_llamaindex/rag.py
    python examples/rag_llamaindex/rag.py "When was the Kestrel Bridge opened?"

Runs on a devnet with test money. When OG_PRIVATE_KEY is set, it pays from that wallet instead. The documents are in
`documents/`, and the embedding is `HashedWords`, which runs on this machine. Only the questions and the passages that
were found go to the model, and only its calls are paid.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from hashed_words import HashedWords
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.node_parser import SentenceSplitter

from llama_index_opengradient import OpenGradient, SettlementLedgerHandler, SettlementReceipt
from opengradient_x402 import Payments, load_network
from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.settings import Settings

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = (
    "When was the Kestrel Bridge opened?",
    "How many passengers does the ferry Otter carry?",
    "Who is the harbour master?",
)


def open_payments(cleanup: ExitStack) -> Payments:
    """Open the payments of the user's wallet, or of a new wallet on a devnet that is started here."""
    if Settings.load().private_key is not None:
        return Payments.open()
    devnet = cleanup.enter_context(DevnetProcess())
    wanted = {"opg": "10", "approved": True}
    account = httpx.post(devnet.network["accounts_url"], json=wanted).raise_for_status().json()
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
    network = load_network(devnet.network_file)
    return Payments.open(network=network, private_key=account["private_key"], ledger=folder / "ledger.sqlite")


def make_query_engine(llm: OpenGradient) -> BaseQueryEngine:
    """Return a query engine that sends the two nearest passages to the model and streams its answer."""
    documents = SimpleDirectoryReader(DOCUMENTS).load_data()
    passages = SentenceSplitter(chunk_size=128, chunk_overlap=0).get_nodes_from_documents(documents)
    embedding = HashedWords.of_corpus(passage.get_content() for passage in passages)
    index = VectorStoreIndex(passages, embed_model=embedding)
    return index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True)


def answer(engine: BaseQueryEngine, question: str) -> None:
    """Print the answer while it streams, then the names of the source files."""
    print(f"\nQ: {question}\nA: ", end="")
    response = engine.query(question)
    for piece in response.response_gen:
        print(piece, end="", flush=True)
    sources = dict.fromkeys(node.metadata["file_name"] for node in response.source_nodes)
    print(f"\n   ({', '.join(sources)})")


def print_receipts(receipts: Sequence[SettlementReceipt], payments: Payments) -> None:
    """Print one line for each paid call, then the number of signatures that paid for them."""
    print("\nReceipts")
    for receipt in receipts:
        tokens = f"{receipt.prompt_tokens}+{receipt.completion_tokens} tokens"
        cost = payments.network.asset.format(receipt.cost_atomic or 0)
        print(f"  {receipt.call_id}  {receipt.model}  {tokens}  {receipt.status}  {cost}")
    authorizations = {receipt.authorization_id for receipt in receipts}
    print(f"calls: {len(receipts)}, payments: {len(authorizations)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the questions and print answers and receipts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", default="openai/gpt-5-mini")
    options = parser.parse_args(arguments)

    with ExitStack() as cleanup:
        payments = open_payments(cleanup)
        cleanup.callback(payments.close)
        llm = OpenGradient(model=options.model, payments=payments)
        cleanup.callback(llm.close)
        with SettlementLedgerHandler().listening() as settlements:
            engine = make_query_engine(llm)
            for question in options.questions:
                answer(engine, question)
        print_receipts(settlements.receipts, payments)


if __name__ == "__main__":
    main()
