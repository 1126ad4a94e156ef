"""The board and the alert rules of docs/monitoring, read by Prometheus itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.prometheus import program
from support.venvs import PROJECT

RULES = PROJECT / "docs" / "monitoring" / "alerts.yaml"
BUSY = {'opengradient_calls_total{model="m"}': "0+10x90"}
PAYERS = {'opengradient_budget_left{payer="0xA"}': "1-0.011x90", 'opengradient_budget{payer="0xA"}': "1x90"}
FIRES = {
    "OpenGradientSettlementDisputed": {**BUSY, "opengradient_disputes_total": "_x10 1x80"},
    "OpenGradientPaymentOutcomeUnknown": {**BUSY, 'opengradient_refusals_total{money="unknown"}': "_x10 1x80"},
    "OpenGradientBudgetNearlyUsed": PAYERS,
    "OpenGradientNothingReconciles": {"opengradient_authorization_oldest_seconds": "0+600x90"},
    "OpenGradientCallsFail": {'opengradient_refusals_total{money="not_paid"}': "0+1x90"},
    "OpenGradientEveryCallSigns": {**BUSY, "opengradient_signatures_total": "0+10x90"},
    "OpenGradientLedgerIsSlow": {"opengradient_ledger_queue": "0+100x90"},
}
"""What a process shows, once a minute, by the alert that must come of it. Each event is the first of its process."""
WELL = {
    **BUSY,
    "opengradient_disputes_total": "1x90",
    'opengradient_refusals_total{money="unknown"}': "1x90",
    'opengradient_refusals_total{money="not_paid"}': "0+1x90",
    'opengradient_budget_left{payer="0xA"}': "0.5x90",
    'opengradient_budget{payer="0xA"}': "1x90",
    "opengradient_authorization_oldest_seconds": "120x90",
    "opengradient_signatures_total": "0+1x90",
    "opengradient_ledger_queue": "3x90",
}
"""A process in which something went wrong more than an hour ago."""


def fired(folder: Path, alert: str, series: dict[str, str], at: str) -> bool:
    """Whether Prometheus raises the alert at this time, when a process shows these series."""
    (rule,) = [r for r in yaml.safe_load(RULES.read_text())["groups"][0]["rules"] if r["alert"] == alert]
    told = rule["annotations"]
    expected = {"exp_labels": {**rule["labels"]}, "exp_annotations": told}
    if "{{ $labels.payer }}" in told["summary"]:
        expected["exp_labels"]["payer"] = "0xA"
        expected["exp_annotations"] = {**told, "summary": told["summary"].replace("{{ $labels.payer }}", "0xA")}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": [expected]}],
    }
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    ended = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 or "got:[]" in ended.stdout + ended.stderr, ended.stdout + ended.stderr
    return ended.returncode == 0


@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_comes_of_what_it_is_for_and_not_of_a_process_that_is_well(tmp_path, alert):
    assert fired(
        tmp_path, alert, FIRES[alert], "17m" if "Unknown" in alert else "88m" if "Disp" not in alert else "15m"
    )
    assert not fired(tmp_path, alert, WELL, "88m")


def test_there_is_a_case_for_every_rule():
    assert set(FIRES) == {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


def test_every_panel_of_the_board_shows_what_a_run_did(tmp_path):
    picture = tmp_path / "board.png"
    command = [sys.executable, "tools/board.py", "--seconds=30", f"--picture={picture}"]
    command.append(f"--prometheus={program('prometheus')}")
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    shown = json.loads(ended.stdout.splitlines()[-1])
    board = json.loads((PROJECT / "docs" / "monitoring" / "grafana.json").read_text())
    assert list(shown) == [panel["title"] for panel in board["panels"]]
    assert not [title for title, legends in shown.items() if not legends]
    assert picture.read_bytes().startswith(b"\x89PNG")
