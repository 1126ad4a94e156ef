"""Answers questions about a small town from its documents, with a paid model and a receipt for every call.

    export OG_NETWORK=devnet OG_PRIVATE_KEY=0x…    # a running `opengradient-devnet`, or any other network
    python examples/rag_llamaindex/rag.py "When was the Kestrel Bridge opened?"

Without arguments it asks three questions. The documents are in `documents/`, and the embedding is `HashedWords`, which
runs on this machine. Only the questions and the passages that were found go to the model, and only its calls are paid.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hashed_words import HashedWords
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.node_parser import SentenceSplitter

from llama_index_opengradient import OpenGradient, SettlementLedgerHandler, SettlementReceipt

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = (
    "When was the Kestrel Bridge opened?",
    "How many passengers does the ferry Otter carry?",
    "Who is the harbour master?",
)


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


def print_receipts(receipts: Sequence[SettlementReceipt]) -> None:
    """Print one line for each paid call, then the number of payments."""
    print("\nReceipts")
    for receipt in receipts:
        tokens = f"{receipt.prompt_tokens}+{receipt.completion_tokens} tokens"
        print(f"  {receipt.call_id}  {receipt.model}  {tokens}  {receipt.status}  cost {receipt.cost_atomic} atomic")
    payments = {receipt.authorization_id for receipt in receipts}
    print(f"{len(receipts)} calls, {len(payments)} payment(s). `opengradient-x402 receipts` shows how they settle.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the questions and print answers and receipts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", default="openai/gpt-5-mini")
    options = parser.parse_args(arguments)

    llm = OpenGradient(model=options.model)
    with SettlementLedgerHandler().listening() as settlements:
        engine = make_query_engine(llm)
        for question in options.questions:
            answer(engine, question)
    print_receipts(settlements.receipts)
    llm.close()


if __name__ == "__main__":
    main()
