"""Completion of both programs, as a shell uses it, and where no shell started them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ["opengradient-x402", "opengradient-devnet"]
FOLDER = Path(sys.executable).parent
UNSEEN = (
    "import shellingham, sys\n"
    "def unseen(): raise shellingham.ShellDetectionFailure\n"
    "shellingham.detect_shell = unseen\n"
    "sys.argv = [sys.argv[1], '--show-completion']\n"
    "from {module} import main\nmain()"
)
MODULES = {"opengradient-x402": "opengradient_x402.cli.main", "opengradient-devnet": "opengradient_devnet.cli"}


def shown(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{FOLDER}{os.pathsep}{os.environ['PATH']}", "HOME": os.devnull, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shown_script_completes_options_in_bash(program):
    script = (
        f"source <({program} --show-completion); COMP_WORDS=({program} --ver); COMP_CWORD=1; "
        f'_{program.replace("-", "_")}_completion {program}; echo "${{COMPREPLY[@]}}"'
    )
    done = shown(["bash", "-c", script])
    assert (done.stdout.strip(), done.stderr) == ("--version", "")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("shell", "expected"), [("/bin/bash", "complete -o default"), ("/usr/bin/zsh", "#compdef")])
def test_a_process_that_no_shell_started_shows_completion_for_the_users_shell(program, shell, expected):
    done = shown([sys.executable, "-c", UNSEEN.format(module=MODULES[program]), program], SHELL=shell)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert re.search(rf"\b{program}\b", done.stdout)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_machine_without_any_shell_is_told_that_completion_needs_one(program):
    done = shown([sys.executable, "-c", UNSEEN.format(module=MODULES[program]), program])
    assert done.returncode == 1
    assert "not supported" in done.stderr
    assert "Traceback" not in done.stderr
