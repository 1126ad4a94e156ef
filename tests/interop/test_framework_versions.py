"""A wheel of this project in environments of its own: oldest and newest frameworks, single extras, newer Pythons.

What runs in them are our own tests, copied away from the checkout, so that they import what is installed. Of each
face they are the standard suite (all that the framework expects of a model) and the receipts tables (all that we
promise about money): these two use the most of a framework's surface. The rest runs in the checkout's environment.

The newest frameworks run on the newest Python of this machine, the oldest ones on the Python that runs this.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from opengradient_devnet import Devnet
from support.interpreters import find_python
from support.payers import opg_balance
from support.venvs import PROJECT, Venv, install_wheel, make_venv

_HERE = Path(__file__).parent
OPG = 10**18
NEWER_PYTHONS = [version for version in ("3.12", "3.13") if find_python(version)]
NEWEST_PYTHON = find_python(NEWER_PYTHONS[-1]) if NEWER_PYTHONS else None
PROMPT = "What is x402?"

LANGCHAIN_TESTS = (
    "langchain/test_standard_unit.py",
    "langchain/test_standard_integration.py",
    "langchain/test_receipts.py",
    "langchain/test_tool_streams.py",
)
LLAMAINDEX_TESTS = ("llamaindex/test_conformance.py", "llamaindex/test_receipts.py")
PURE_TESTS = (
    "x402/test_signer.py",
    "x402/test_completions.py",
    "x402/payment/test_challenge.py",
    "x402/gateway/test_sse.py",
)

OPTIONAL = ("coincurve", "orjson", "langchain_core", "langchain", "llama_index.core", "eth", "starlette", "uvicorn")
DATA_FILES = {
    "opengradient_devnet/gateway/prices.json",
    "opengradient_devnet/contracts/artifacts.json",
    "opengradient_devnet/contracts/OPG.vy",
    "opengradient_devnet/explorer/style.css",
    "opengradient_x402/py.typed",
    "opengradient_devnet/py.typed",
    "langchain_opengradient/py.typed",
    "llama_index_opengradient/py.typed",
    "llama_index/llms/opengradient/__init__.py",
}

Install = Callable[..., Venv]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a test run in an environment came to."""

    tests: int
    not_passed: list[str]
    skipped: int
    output: str


@pytest.fixture(scope="module")
def install(wheel: Path) -> Install:
    """Makes the environment of a requirements file, with the wheel and some of its extras in it."""

    def environment(name: str, *, extras: str = "", python: Path | None = None) -> Venv:
        requirements = _HERE / "requirements" / f"{name}.txt"
        venv = make_venv(requirements, python=python)
        install_wheel(venv, wheel, requirements, extras=extras)
        return venv

    return environment


@pytest.fixture(scope="module")
def net():
    with Devnet() as network:
        yield network


def run_tests(venv: Venv, folder: Path, paths: Sequence[str], *options: str, snapshot: Path | None = None) -> Outcome:
    """Our own tests, in an environment and a folder where nothing of the checkout can be imported."""
    tests = folder / "tests"
    for path in paths:
        source = PROJECT / "tests" / path
        shutil.copytree(source.parent, tests / source.parent.name, dirs_exist_ok=True)
    for shared in ("support", "vectors"):
        shutil.copytree(PROJECT / "tests" / shared, tests / shared)
    if not paths[0].startswith("x402"):  # what has no devnet needs none
        shutil.copy(PROJECT / "tests" / "conftest.py", tests)
    if snapshot:
        shutil.copy(snapshot, tests / "langchain" / "__snapshots__" / "test_standard_unit.ambr")
    settings = (PROJECT / "pyproject.toml").read_text()  # the same strictness: warnings are errors there, too
    of_xdist = r'^ *"--(numprocesses|maxprocesses|dist)=.*\n'  # which is not there
    settings = re.sub(of_xdist, "", settings, flags=re.MULTILINE)
    (folder / "pyproject.toml").write_text(settings)
    report = folder / "report.xml"
    ended = venv.call(
        *("python", "-I", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"),
        *(*options, *(f"tests/{path}" for path in paths)),
        cwd=folder,
        timeout_s=380,
    )
    output = ended.stdout[-6000:] + ended.stderr[-2000:]
    assert report.exists(), output
    cases = list(ET.parse(report).iter("testcase"))
    return Outcome(
        tests=len(cases),
        not_passed=[
            f"{case.get('classname')}::{case.get('name')}"
            for case in cases
            if case.find("failure") is not None or case.find("error") is not None
        ],
        skipped=sum(case.find("skipped") is not None for case in cases),
        output=output,
    )


def assert_all_passed(outcome: Outcome, *, at_least: int) -> None:
    assert outcome.not_passed == [], outcome.output
    assert outcome.skipped == 0, outcome.output
    assert outcome.tests >= at_least, outcome.output


@pytest.mark.parametrize("face", ["langchain", "llamaindex"])
def test_the_oldest_versions_tried_are_the_ones_that_pyproject_promises(face: str):
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (promised,) = {"langchain": extras["langchain"], "llamaindex": extras["llama-index"]}[face]
    package, bound = promised.split(">=")
    pins = (_HERE / "requirements" / f"{face}-oldest.txt").read_text()
    (pinned,) = re.findall(rf"^{package}==(\S+)$", pins, re.MULTILINE)
    assert (pinned + ".0").startswith(bound + ".")


def test_langchain_oldest(install: Install, tmp_path: Path):
    venv = install("langchain-oldest", extras="langchain,devnet")
    # That core writes one field more when a model is serialized.
    snapshot = _HERE / "snapshots" / "langchain-oldest.ambr"
    outcome = run_tests(venv, tmp_path, LANGCHAIN_TESTS, "--benchmark-disable", snapshot=snapshot)
    assert_all_passed(outcome, at_least=120)


def test_langchain_newest(install: Install, tmp_path: Path):
    venv = install("langchain-newest", extras="langchain,devnet", python=NEWEST_PYTHON)
    tests = (*LANGCHAIN_TESTS, "langchain/test_middlewares.py")
    outcome = run_tests(venv, tmp_path, tests, "--benchmark-disable")
    assert_all_passed(outcome, at_least=120)


def test_llamaindex_oldest(install: Install, tmp_path: Path):
    venv = install("llamaindex-oldest", extras="llama-index,devnet")
    # That core's own models, when today's pydantic reads them.
    ignored = "ignore::pydantic.warnings.UnsupportedFieldAttributeWarning"
    assert_all_passed(run_tests(venv, tmp_path, LLAMAINDEX_TESTS, "-W", ignored), at_least=430)


def test_llamaindex_newest(install: Install, tmp_path: Path):
    venv = install("llamaindex-newest", extras="llama-index,devnet", python=NEWEST_PYTHON)
    assert_all_passed(run_tests(venv, tmp_path, LLAMAINDEX_TESTS), at_least=430)


@pytest.fixture(scope="module")
def bare(install: Install) -> Venv:
    """The wheel without any extra."""
    return install("bare")


def test_without_extras_the_core_is_whole_and_the_rest_says_what_to_install(bare: Venv, scripts: Path):
    found = bare.run(scripts / "installed.py", {"modules": OPTIONAL})
    assert found["present"] == []
    assert set(found["files"]) >= DATA_FILES
    assert all(Path(home).is_relative_to(bare.root) for home in found["homes"].values())
    assert "GatewayClient" in found["names"]["opengradient_x402"]
    extras = {package: re.findall(r"pip install '(\S+)'", hint) for package, hint in found["hints"].items()}
    assert extras == {
        "opengradient_devnet": ["opengradient-integrations[devnet]"],
        "langchain_opengradient": ["opengradient-integrations[langchain]"],
        "llama_index_opengradient": ["opengradient-integrations[llama-index]"],
        "llama_index.llms.opengradient": ["opengradient-integrations[llama-index]"],
    }


def test_without_extras_signatures_and_answers_are_the_same(bare: Venv, tmp_path: Path):
    """The official client's vectors byte by byte with the curve in pure Python; answers with the standard JSON."""
    assert_all_passed(run_tests(bare, tmp_path, PURE_TESTS, "-k", "not coincurve"), at_least=150)


def test_without_extras_the_command_line_works(bare: Venv, tmp_path: Path):
    shown = bare.call("opengradient-x402", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "demo" in shown.stdout
    for command, extra in [(("opengradient-x402", "demo"), "demo"), (("opengradient-devnet", "--help"), "devnet")]:
        refused = bare.call(*command, cwd=tmp_path)
        assert refused.returncode in (1, 2)
        assert f"pip install 'opengradient-integrations[{extra}]'" in refused.stderr
        assert "Nothing was started" in refused.stderr
        assert "Traceback" not in refused.stderr


def pay(venv: Venv, scripts: Path, net: Devnet, folder: Path, faces: list[str]) -> None:
    """Two calls by each face, whole and streamed, which cost the wallet what their receipts say."""
    account = net.account(opg="1", approved=True)
    answers = venv.run(
        scripts / "paid_by_faces.py",
        {
            "faces": faces,
            "private_key": account.private_key,
            "network": f"{net.gateway_url}/network",
            "ledger": f"sqlite:///{folder / 'ledger.sqlite'}",
            "prompt": PROMPT,
        },
    )
    assert list(answers) == faces
    for answer in answers.values():
        assert PROMPT in answer["text"]
        assert answer["streamed"] == answer["text"]
        assert len(answer["receipts"]) == 2
    net.close_sessions()
    costs = [int(receipt["cost_atomic"]) for answer in answers.values() for receipt in answer["receipts"]]
    assert opg_balance(net, account.address) == OPG - sum(costs)


@pytest.mark.parametrize(
    ("extra", "face", "other", "others_hint"),
    [
        ("langchain", "langchain", "llama_index_opengradient", "LlamaIndex"),
        ("llama-index", "llama_index", "langchain_opengradient", "LangChain"),
    ],
)
def test_one_face_pays_without_the_other_and_without_the_devnet(
    install: Install, scripts: Path, net: Devnet, tmp_path: Path, extra: str, face: str, other: str, others_hint: str
):
    venv = install(f"only-{extra}", extras=extra)
    found = venv.run(scripts / "installed.py", {"modules": OPTIONAL})
    frameworks = {"langchain": "langchain_core", "llama_index": "llama_index.core"}
    assert set(found["present"]) & {"langchain", "eth", "starlette", *frameworks.values()} == {frameworks[face]}
    assert f"needs {others_hint}, which is not installed" in found["hints"][other]
    pay(venv, scripts, net, tmp_path, [face])
    demo = venv.call("opengradient-x402", "demo", cwd=tmp_path)
    assert (demo.returncode, "Traceback" in demo.stderr) == (2, False)
    assert "pip install 'opengradient-integrations[demo]'" in demo.stderr


@pytest.mark.parametrize("version", NEWER_PYTHONS)
def test_everything_installs_and_pays_on_newer_pythons(
    install: Install, scripts: Path, net: Devnet, tmp_path: Path, version: str
):
    venv = install("everything", extras="all", python=find_python(version))
    found = venv.run(scripts / "installed.py", {"modules": OPTIONAL})
    assert found["hints"] == {}
    assert set(found["present"]) == set(OPTIONAL)
    pay(venv, scripts, net, tmp_path, ["langchain", "llama_index"])
    demo = venv.call("opengradient-x402", "demo", "--json", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
