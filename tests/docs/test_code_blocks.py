"""The code in README and docs is run as it stands: Python page by page, our commands one by one."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.gateway.profile import HELPFUL
from opengradient_x402.networks import load_network
from support.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
# README is also shown by package indexes, where a relative link leads nowhere.
HERE_ON_GITHUB = re.compile(r"\]\(https://github\.com/OpenGradient/opengradient-integrations/(?:(?:blob|tree)/)?main/")
# Commands that are not run here, and why.
ELSEWHERE = {
    "pip install": "installing is what the release check does, in an empty environment",
    "uv run pytest": "this is it",
    "uv run opengradient-x402 demo": "tests/demo runs the demo",
    "opengradient-x402 demo": "tests/demo runs the demo",
    "bash .ci/run": "this is run by it",
    "git ": "not ours",
    "export ": "read by the next line of a shell",
    "cd ": "not ours",
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page=page, line=text.count("\n", 0, found.start()) + 2, language=found["language"], code=found["code"])
        for found in BLOCK.finditer(text)
    ]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands_of(page: Path) -> list[str]:
    """Our own commands on a page, in order, without the comments behind them."""
    lines = [
        line.partition("  #")[0].strip()
        for block in blocks_of(page)
        if block.language in ("bash", "sh", "console")
        for line in block.code.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line and not line.startswith(tuple(ELSEWHERE))]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Iterator[Devnet]:
    folder = tmp_path_factory.mktemp("state") / "opengradient"
    folder.mkdir()
    with Devnet(idle_timeout_s=1.5, network_file=folder / "devnet.json") as net:
        yield net


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    with WarmPython() as warm:
        yield warm


@pytest.fixture
def environment(network, tmp_path) -> dict[str, str]:
    """A funded and approved wallet, an empty ledger, and nothing else of anybody's."""
    account = network.account(opg="10", approved=True)
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(network.network_file.parents[1]),
        "OG_NETWORK": "devnet",
        "OG_PRIVATE_KEY": account.private_key,
        "OG_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "PYTHONWARNINGS": "error::DeprecationWarning:__main__",
    }


@pytest.mark.notebook
@pytest.mark.parametrize("page", pages_with("python"), ids=name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, python, environment, tmp_path):
    script = tmp_path / "page.py"
    source = ""
    for block in blocks_of(page):
        if block.language == "python":
            source += "\n" * (block.line - 1 - source.count("\n")) + block.code  # same line numbers as the page
    script.write_text(source)
    done = python.run(script, cwd=tmp_path, env=environment)
    assert done.returncode == 0, f"{name(page)}\n{done.stderr[-4000:]}"


@pytest.mark.notebook
@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=name)
def test_the_commands_of_a_page_run_as_written_one_after_the_other(page, environment, tmp_path):
    for line in commands_of(page):
        assigned = re.match(r"(?:[A-Z_]+=\S+ )+", line)
        command = (line[assigned.end() :] if assigned else line).removeprefix("uv run ")
        given = dict(pair.split("=", 1) for pair in assigned[0].split()) if assigned else {}
        if command.startswith("opengradient-devnet"):
            _starts_and_stops(command, environment | given, tmp_path)
            continue
        if command.startswith("opengradient-x402 serve"):
            _serves_and_stops(command, environment | given, tmp_path)
            continue
        assert command.startswith(("opengradient-x402", "python ")), f"nobody runs {line!r}: say why in ELSEWHERE"
        done = subprocess.run(
            shlex.split(command.replace("python examples", f"python {ROOT}/examples")),
            cwd=tmp_path,
            env=environment | given,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _starts_and_stops(line: str, environment: dict[str, str], folder: Path) -> None:
    """A devnet that announces itself, writes its file, and ends well when it is told to."""
    (folder / "prices.json").write_text((ROOT / "opengradient_devnet" / "gateway" / "prices.json").read_text())
    process = subprocess.Popen(
        shlex.split(line.removesuffix("&").strip()),
        cwd=folder,
        env=environment | {"XDG_STATE_HOME": str(folder / "state")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        file = folder / "state" / "opengradient" / "devnet.json"
        deadline = time.monotonic() + 120
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "gateway" in said


def _serves_and_stops(line: str, environment: dict[str, str], folder: Path) -> None:
    """A server that prints a key, and ends well when it is told to."""
    with subprocess.Popen(
        shlex.split(line), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            while "OPENAI_API_KEY=sk-og-" not in (said := process.stdout.readline()):
                assert said, f"{line} ended with {process.wait()}"
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()


def test_the_readme_has_no_link_that_leads_nowhere_on_a_package_index():
    assert [
        link for link in re.findall(r"\]\(([^)\s]+)", PAGES[0].read_text()) if not link.startswith("https://")
    ] == []


def test_every_wait_that_is_shown_outlasts_an_ordinary_session():
    ordinary_s = max(HELPFUL.idle_timeout_s, load_network("base").session_idle_s)
    sources = [*PAGES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    waits = [
        (path.name, wait)
        for path in sources
        for wait in re.findall(r"(?:wait_settled\([^)]*timeout_s=|--wait )(\d+)", path.read_text())
    ]
    assert [(name, wait) for name, wait in waits if int(wait) <= ordinary_s] == []
    assert len(waits) > 5


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        text = page.read_text().replace("https://raw.githubusercontent.com/", "https://github.com/")
        for link in re.findall(r"\]\(([^)#\s]+)", HERE_ON_GITHUB.sub("](", text)):
            if not link.startswith("http"):
                target = (page.parent / link).resolve()
                assert target.exists(), f"{name(page)} links to {link}, which does not exist"
                waiting.append(target)
    assert {page for page in PAGES if page not in reached} == set()
