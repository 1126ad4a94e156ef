"""What the README counts is what the repository counts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from llamaindex.suite import FunctionCallingLLMTests
from opengradient_x402 import SpendPolicy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def names_in(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


def known_failures() -> dict:
    tree = ast.parse((ROOT / "tests" / "interop" / "test_openai_like.py").read_text())
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "KNOWN_FAILURES")


def test_the_llama_index_suite_is_as_large_as_the_readme_says_and_finds_as_much():
    behaviours = int(re.search(r"our LlamaIndex suite \((\d+) behaviours\)", README)[1])
    failing = int(re.search(r"`OpenAILike` fails (\d+)", README)[1])
    assert behaviours == len(names_in(FunctionCallingLLMTests))
    assert failing == len(known_failures())


def test_the_default_limits_are_those_that_the_readme_names():
    assert re.search(r"(\d+) OPG per\s+signature and (\d+) OPG a day", README).groups() == (
        SpendPolicy().max_per_authorization,
        SpendPolicy().max_per_day,
    )


def test_langchains_standard_tests_are_all_run_and_none_is_marked_to_fail():
    passed, there = map(int, re.search(r"LangChain's standard tests \| (\d+) of (\d+)", README).groups())
    # Some names are run with several parameters.
    assert passed == there >= len(names_in(ChatModelUnitTests)) + len(names_in(ChatModelIntegrationTests))
    for path in (ROOT / "tests" / "langchain").glob("test_standard_*.py"):
        assert "xfail" not in path.read_text()
        assert "mark.skip" not in path.read_text()
