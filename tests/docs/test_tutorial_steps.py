"""Each step of the tutorials that this project answers, and where it is shown: in LangChain and in LlamaIndex.

A step names cells of the notebooks by their tags. Each cell must exist, and must have run and shown its result.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAT = "01_chat_and_settlement_modes"
STREAMS = "02_streaming_patterns"
AGENT = "03_verified_agent"
AUDITS = "05_receipts_and_audits"
PROVIDERS = "04_many_providers_and_local_models"

# tutorial, step: where LangChain shows it, where LlamaIndex shows it
STEPS: dict[tuple[str, str], tuple[str, str]] = {
    ("sync and async", "private key from the environment"): (f"{CHAT}#setup", f"{CHAT}#setup"),
    ("sync and async", "approve OPG, idempotently"): (f"{CHAT}#approve", f"{CHAT}#approve"),
    ("async", "ensure_opg_approval(min_allowance=)"): (f"{CHAT}#approve", f"{CHAT}#approve"),
    ("sync and async", "1: basic chat, finish reason"): (f"{CHAT}#lc:basic", f"{CHAT}#li:basic"),
    ("sync and async", "1: payment_hash"): (f"{CHAT}#lc:payment-hash", f"{CHAT}#li:payment-hash"),
    ("sync and async", "2: switch providers with one line"): (f"{CHAT}#lc:providers", f"{CHAT}#li:providers"),
    ("sync", "3: streaming, final usage"): (f"{CHAT}#lc:stream", f"{CHAT}#li:stream"),
    ("async", "3: streaming with async for"): (f"{CHAT}#lc:async", f"{CHAT}#li:async"),
    ("sync and async", "4: three settlement modes"): (f"{CHAT}#lc:modes", f"{CHAT}#li:modes"),
    ("sync and async", "4: receipts of the three modes"): (f"{CHAT}#lc:mode-receipts", f"{CHAT}#li:mode-receipts"),
    ("sync and async", "5: function calling"): (f"{CHAT}#lc:tools", f"{CHAT}#li:tools"),
    ("sync and async", "5: tool results in a follow-up call"): (f"{CHAT}#lc:tools", f"{CHAT}#li:tools"),
    ("sync and async", "complete code"): (f"{CHAT}#lc:complete", f"{CHAT}#li:complete"),
    ("sync and async", "next steps: a full agent loop with tools"): (f"{AGENT}#lc:agent", f"{AGENT}#li:agent"),
    ("sync and async", "next steps: verifiable inference"): (f"{AGENT}#lc:tee-proof", f"{AGENT}#li:tee-proof"),
    ("sync and async", "receipts for compliance, billing audits, disputes"): (
        f"{AUDITS}#lc:export",
        f"{AUDITS}#li:export",
    ),
    ("sync and async", "look a payment up on chain"): (f"{AUDITS}#lc:reconcile", f"{AUDITS}#li:reconcile"),
    ("sync and async", "errors per provider do not stop the program"): (f"{CHAT}#lc:complete", f"{CHAT}#li:complete"),
    ("llm-connectivity", "basic streaming"): (f"{CHAT}#lc:stream", f"{CHAT}#li:stream"),
    ("llm-connectivity", "understanding chunks"): (f"{STREAMS}#lc:chunks", f"{STREAMS}#li:chunks"),
    ("llm-connectivity", "aggregating chunks"): (f"{STREAMS}#lc:aggregate", f"{STREAMS}#li:aggregate"),
    ("llm-connectivity", "progress dots"): (f"{STREAMS}#lc:dots", f"{STREAMS}#li:dots"),
    ("llm-connectivity", "token count in real time"): (f"{STREAMS}#lc:tokens", f"{STREAMS}#li:tokens"),
    ("llm-connectivity", "error handling in streams"): (f"{STREAMS}#lc:error", f"{STREAMS}#li:error"),
    ("llm-connectivity", "early cancellation"): (f"{STREAMS}#lc:cancel", f"{STREAMS}#li:cancel"),
    ("llm-connectivity", "streaming against not streaming"): (f"{STREAMS}#lc:latency", f"{STREAMS}#li:latency"),
    ("llm-connectivity", "streaming with callbacks"): (f"{STREAMS}#lc:callback", f"{STREAMS}#li:callback"),
    ("four providers", "message structure and parameters"): (
        f"{PROVIDERS}#lc:parameters",
        f"{PROVIDERS}#li:parameters",
    ),
    ("four providers", "OpenAI, Anthropic, Google"): (f"{PROVIDERS}#lc:same-prompt", f"{PROVIDERS}#li:same-prompt"),
    ("four providers", "local models"): (f"{PROVIDERS}#lc:local-gateway", f"{PROVIDERS}#li:local-gateway"),
    ("four providers", "the joke, by every provider"): (f"{PROVIDERS}#lc:same-prompt", f"{PROVIDERS}#li:same-prompt"),
    ("four providers", "streaming, Gemini included"): (f"{PROVIDERS}#lc:same-prompt", f"{PROVIDERS}#li:markdown"),
    ("four providers", "Markdown while it streams"): (f"{PROVIDERS}#lc:markdown", f"{PROVIDERS}#li:markdown"),
    ("four providers", "comparison of APIs"): (f"{PROVIDERS}#lc:comparison", f"{PROVIDERS}#li:same-prompt"),
    ("four providers", "next steps: model-to-model conversation"): (
        f"{PROVIDERS}#lc:self-play",
        f"{PROVIDERS}#li:self-play",
    ),
}
FRAMEWORKS = {"lc:": ("chat", "Chat", "agent", "langchain"), "li:": ("llm", "OpenGradient(", "handler", "llama_index")}


def tagged_cells(notebook: str, tag: str) -> list[dict]:
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]


@pytest.mark.parametrize(("step", "places"), STEPS.items(), ids=lambda value: " - ".join(value).replace("/", "-"))
def test_each_step_of_the_tutorials_is_shown_in_both_frameworks(step, places):
    for place in places:
        notebook, _, tag = place.partition("#")
        cells = tagged_cells(notebook, tag)
        assert cells, f"{step}: no cell of {notebook} has the tag {tag}"
        assert all(cell["execution_count"] for cell in cells)
        assert any(cell["outputs"] for cell in cells) or tag.endswith(":latency"), f"{place} shows nothing"


def test_a_cell_that_is_tagged_for_a_framework_uses_that_framework():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text())["cells"]:
            for tag in cell["metadata"].get("tags", []):
                words = FRAMEWORKS.get(tag[:3])
                source = "".join(cell["source"])
                shared = {
                    "receipts",
                    "settled",
                    "plot",
                    "hash",
                    "proof",
                    "comparison",
                    "reconcile",
                    "export",
                    "verify",
                    "tampered",
                    "proofs",
                    "spending",
                }
                if words and not any(tag.endswith(word) for word in shared):
                    assert any(word in source for word in words), f"{notebook.name}: {tag}"
