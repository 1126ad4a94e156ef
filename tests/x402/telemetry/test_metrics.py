"""Metrics as Prometheus reads them, and a board and alerts that use no other."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

from opengradient_devnet.faults import SettleAtCap
from opengradient_x402.errors import PolicyRefused
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.telemetry.metrics import instrument
from support.payers import PROMPT, client_for, payments_for, settled_receipts

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring"
_LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Scrapes:
    """What Prometheus would read now."""

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 without any."""
        return sum(
            float(found["value"])
            for found in _LINE.finditer(generate_latest(REGISTRY).decode())
            if found["name"] == name and labels.items() <= dict(_LABEL.findall(found["labels"] or "")).items()
        )

    def until(self, name: str, value: float, **labels: str) -> None:
        """Waits until it has this value: events are counted in a thread of their own."""
        ends = time.monotonic() + 10
        while (now := self.value(name, **labels)) != pytest.approx(value):
            assert time.monotonic() < ends, f"{name} {labels} is {now}, and not {value}"
            time.sleep(0.02)

    def names(self) -> set[str]:
        return {found["name"] for found in _LINE.finditer(generate_latest(REGISTRY).decode())}


@pytest.fixture(scope="module")
def scrapes():
    reader = PrometheusMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    stop = instrument(provider)
    yield Scrapes()
    stop()
    provider.shutdown()


def test_calls_money_and_settlements_are_counted_as_the_ledger_has_them(net, account, tmp_path, scrapes):
    policy = SpendPolicy(max_per_day="2")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        receipts = [client.chat(PROMPT).receipt for _ in range(3)]
        wallet = {"payer": payments.payer}
        scrapes.until("opengradient_calls_total", 3, model="openai/gpt-5", outcome="ok")
        scrapes.until("opengradient_signatures_total", 1)
        scrapes.until("opengradient_cost_total", sum(receipt.cost_atomic for receipt in receipts) / 10**18)
        scrapes.until("opengradient_reserved", receipts[0].authorized_atomic / 10**18, **wallet)
        scrapes.until("opengradient_budget", 2, **wallet)
        scrapes.until("opengradient_budget_left", 2 - receipts[0].authorized_atomic / 10**18, **wallet)
        assert 0 < scrapes.value("opengradient_authorization_oldest_seconds", **wallet) < 60
        taken = sum(receipt.settled_atomic for receipt in settled_receipts(net, payments)) / 10**18
        scrapes.until("opengradient_spend_total", taken, **wallet)
        scrapes.until("opengradient_settlements_total", 1, status="settled")
        scrapes.until("opengradient_settlement_lag_seconds_count", 1)
        scrapes.until("opengradient_authorization_oldest_seconds", 0, **wallet)
        scrapes.until("opengradient_budget_left", 2 - taken, **wallet)
        assert scrapes.value("opengradient_reserved", **wallet) == 0
    assert scrapes.value("opengradient_ledger_queue") == 0


def test_a_refusal_is_counted_with_what_it_means_for_the_money(net, account, tmp_path, scrapes):
    policy = SpendPolicy(max_per_day="0.000001")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        with pytest.raises(PolicyRefused):
            client.chat(PROMPT)
        scrapes.until("opengradient_refusals_total", 1, error="PolicyRefused", money="not_paid", kind="policy")
        assert scrapes.value("opengradient_reserved", payer=payments.payer) == 0


def test_every_metric_of_the_board_and_the_alerts_is_one_that_is_emitted(net, account, tmp_path, scrapes):
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.faults.inject(SettleAtCap(), times=None)
        settled_receipts(net, payments)
        scrapes.until("opengradient_disputes_total", 1)
        # Where this file's other tests did not run.
        with (
            payments_for(net, account, tmp_path / "poor.sqlite", policy=SpendPolicy(max_per_day="0.000001")) as poor,
            client_for(poor) as refused,
            pytest.raises(PolicyRefused),
        ):
            refused.chat(PROMPT)
        ends = time.monotonic() + 10
        while scrapes.value("opengradient_refusals_total") == 0 and time.monotonic() < ends:
            time.sleep(0.02)
        emitted = {name for name in scrapes.names() if name.startswith("opengradient_")}
    board = json.loads((MONITORING / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    queries += [rule["expr"] for rule in group["rules"]]
    used = set(re.findall(r"\bopengradient_\w+", " ".join(queries)))
    assert len(used) >= 12
    assert used <= emitted, used - emitted
    # What is emitted and on no panel is not forgotten by accident: tokens only.
    bases = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in emitted}
    assert bases - {re.sub(r"_bucket$", "", name) for name in used} == {"opengradient_tokens_total"}
