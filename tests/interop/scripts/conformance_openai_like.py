"""Runs the LlamaIndex conformance suite against `llama-index-llms-openai-like`, and tells which tests fail.

Runs in an environment of its own; reads the path of these tests and the URL of an unpaid OpenAI-shaped server.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

TASK = json.loads(sys.stdin.readline())
sys.path.insert(0, TASK["tests"])

from llama_index.llms.openai_like import OpenAILike  # noqa: E402

from llamaindex.suite import FunctionCallingLLMTests  # noqa: E402


class TestOpenAILike(FunctionCallingLLMTests):
    base_url_param = "api_base"

    @property
    def llm_class(self):
        return OpenAILike

    @property
    def llm_params(self):
        return {
            "model": "gpt-4.1",
            "api_base": TASK["unpaid_url"],
            "api_key": "canary-key",
            "is_chat_model": True,
            "is_function_calling_model": True,
            "max_retries": 0,
            "timeout": 20,
        }


class Outcomes:
    """Which tests did not pass, by name without parameters, with how many of how many."""

    def __init__(self):
        self.passed, self.failed = {}, {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        tally = self.passed if report.outcome == "passed" else self.failed
        tally.setdefault(name, []).append(report.nodeid.rpartition("::")[2])


def main():
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_openai_like.py"
        path.write_text("from __main__ import TestOpenAILike  # noqa: F401\n")
        options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "--rootdir", folder, str(path)]
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            pytest.main(options, plugins=[outcomes])
        finally:
            sys.stdout = stdout
    names = outcomes.passed.keys() | outcomes.failed.keys()
    failed = {
        name: [len(ids), len(ids) + len(outcomes.passed.get(name, []))] for name, ids in sorted(outcomes.failed.items())
    }
    print(json.dumps({"tests": sorted(names), "failed": failed}))


if __name__ == "__main__":
    main()
