"""What the page on containers says of images and manifests fits this project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from opengradient_x402.cli.main import build_app
from opengradient_x402.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "containers-and-serverless.md").read_text()
KNOWN = set(re.findall(r"OG_[A-Z_]+", Settings.__doc__ or ""))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def manifests():
    (text,) = blocks("yaml")
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def test_every_variable_on_the_page_is_one_that_is_read():
    assert set(re.findall(r"\bOG_[A-Z_]+", PAGE)) <= KNOWN


def test_the_image_installs_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"opengradient-integrations\[([\w,-]+)\]", blocks("dockerfile")[0])
    assert set(asked.split(",")) <= set(extras)


def test_the_pods_find_their_secrets_where_the_manifests_put_them(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,), (item,) = container["volumeMounts"], volume["secret"]["items"]
    env = {variable["name"]: variable for variable in container["env"]}
    secret = manifests["Secret"]
    assert mount["name"] == volume["name"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert env["OG_PRIVATE_KEY_FILE"]["value"] == f"{mount['mountPath']}/{item['path']}"
    assert item["key"] in secret["stringData"]
    jobs = manifests["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for variable in [*container["env"], *jobs[0]["env"]]:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["name"] == secret["metadata"]["name"]
            assert reference["key"] in secret["stringData"]


def test_the_job_runs_a_command_that_exists(manifests):
    from typer.testing import CliRunner

    jobs = manifests["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program, *arguments = jobs[0]["command"]
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    shown = CliRunner().invoke(build_app(arguments), [*arguments, "--help"])
    assert shown.exit_code == 0, shown.output
