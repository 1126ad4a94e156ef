"""Draws docs/images/board.png: the panels of docs/monitoring/grafana.json, fed by a run on a devnet.

It is not Grafana: it reads the same file, evaluates the same queries over real scrapes of the metrics, and plots them.
Ranges in the queries are a twentieth as long as written (5m is 15 s), because the run takes a minute and not a day.

    python tools/board.py
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from opengradient_devnet import Devnet
from opengradient_devnet.faults import SettleAtCap
from opengradient_x402 import GatewayClient, OpenGradientError, Payments, SpendPolicy
from opengradient_x402.telemetry.metrics import instrument

ROOT = Path(__file__).parents[1]
BOARD, PICTURE = ROOT / "docs" / "monitoring" / "grafana.json", ROOT / "docs" / "images" / "board.png"
RUN_S, EVERY_S, SHORTER = 60.0, 0.5, 20.0
MODELS = ("openai/gpt-5", "openai/gpt-5-mini", "anthropic/claude-sonnet-4-5")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Series = dict[frozenset[tuple[str, str]], float]
"""Values by their labels."""
Scrapes = list[tuple[float, dict[str, Series]]]


# -- the run


def scrape() -> dict[str, Series]:
    found: dict[str, Series] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name.startswith("opengradient_"):
                labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_")}
                found.setdefault(sample.name, {})[frozenset(labels.items())] = sample.value
    return found


def work(payments: Payments, ends: float, pause_s: float) -> None:
    """One user who asks, with pauses, until the run ends."""
    draw = random.Random(payments.payer)
    with GatewayClient(payments) as client:
        while time.monotonic() < ends:
            body = {"model": draw.choice(MODELS), "messages": [{"role": "user", "content": "Tell me of receipts."}]}
            with suppress(OpenGradientError):
                client.chat({**body, "max_tokens": draw.choice((40, 200, 800))})
            time.sleep(draw.uniform(0, 2 * pause_s))


def run() -> Scrapes:
    """A minute of two wallets, one of them poor, whose sessions settle now and then; once a gateway takes too much."""
    reader = PrometheusMetricReader()
    stop = instrument(MeterProvider(metric_readers=[reader]))
    scrapes: Scrapes = []
    with tempfile.TemporaryDirectory() as folder, Devnet(pace_s=0.001) as net:
        wallets = [
            Payments.open(
                network=f"{net.gateway_url}/network",
                private_key=net.account(opg="50", approved=True).private_key,
                policy=SpendPolicy(max_per_day=budget),
                ledger=Path(folder) / "ledger.sqlite",
            )
            for budget in ("3", "0.12")
        ]
        began = time.monotonic()
        users = [
            threading.Thread(target=work, args=(wallet, began + RUN_S, pause_s))
            for wallet, pause_s in zip((*wallets, wallets[0]), (0.3, 1.0, 0.5), strict=True)
        ]
        for user in users:
            user.start()
        settle_at = [12.0, 24.0, 36.0, 48.0]
        while (now := time.monotonic() - began) < RUN_S:
            if settle_at and now > settle_at[0]:
                settle_at.pop(0)
                if not settle_at:
                    net.faults.inject(SettleAtCap())  # of whichever session
                net.close_sessions()
                wallets[0].reconciler.reconcile()
            scrapes.append((now, scrape()))
            time.sleep(EVERY_S)
        for user in users:
            user.join()
        for wallet in wallets:
            wallet.close()
    stop()
    return scrapes


# -- the queries: as much of PromQL as the board uses


def evaluate(query: str, scrapes: Scrapes) -> Series:
    """The value of a query at the last of these scrapes."""
    query = query.strip()
    if found := re.fullmatch(r"(.+\)) \* (\d+)", query):
        return {labels: value * float(found[2]) for labels, value in evaluate(found[1], scrapes).items()}
    if found := re.fullmatch(r"histogram_quantile\(([\d.]+), (.+)\)", query):
        return quantile(float(found[1]), evaluate(found[2], scrapes))
    if found := re.fullmatch(r"(sum|min|max)(?: by \(([\w, ]+)\))? ?\((.+)\)", query):
        by = set(found[2].split(", ")) if found[2] else set()
        return grouped({"sum": sum, "min": min, "max": max}[found[1]], by, evaluate(found[3], scrapes))
    if found := re.fullmatch(r"rate\((\w+)\[(\d+)([smh])\]\)", query):
        return rate(found[1], float(found[2]) * _SECONDS[found[3]] / SHORTER, scrapes)
    if re.fullmatch(r"\w+", query):
        return scrapes[-1][1].get(query, {})
    raise ValueError(f"The board has a query that this script cannot evaluate: {query}")


def grouped(together: Callable[[Iterable[float]], float], by: set[str], series: Series) -> Series:
    groups: dict[frozenset[tuple[str, str]], list[float]] = {}
    for labels, value in series.items():
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in by), []).append(value)
    return {labels: together(values) for labels, values in groups.items()}


def rate(name: str, range_s: float, scrapes: Scrapes) -> Series:
    now, last = scrapes[-1]
    _, first = next(scrape for scrape in scrapes if scrape[0] >= now - range_s)
    before = first.get(name, {})
    return {labels: (value - before.get(labels, 0.0)) / range_s for labels, value in last.get(name, {}).items()}


def quantile(wanted: float, buckets: Series) -> Series:
    """Linear inside a bucket, as Prometheus has it; nothing without observations."""
    counts = sorted((float(dict(labels)["le"]), count) for labels, count in buckets.items())
    if not counts or counts[-1][1] <= 0:
        return {}
    rank, lower, below = wanted * counts[-1][1], 0.0, 0.0
    for upper, count in counts:
        if count >= rank:
            inside = 0.0 if count == below else (rank - below) / (count - below)
            return {frozenset(): lower if upper == float("inf") else lower + (upper - lower) * inside}
        lower, below = upper, count
    return {}


# -- the picture


def lines(target: dict[str, Any], scrapes: Scrapes) -> dict[str, list[tuple[float, float]]]:
    """The points of each line of a query, by the line's legend."""
    found: dict[str, list[tuple[float, float]]] = {}
    for index in range(1, len(scrapes)):
        for labels, value in evaluate(target["expr"], scrapes[: index + 1]).items():
            legend = target["legendFormat"]
            for name, value_of in labels:
                legend = legend.replace("{{%s}}" % name, value_of[:28])  # noqa: UP031  (braces)
            found.setdefault(legend, []).append((scrapes[index][0], value))
    return found


def draw(scrapes: Scrapes) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    board = json.loads(BOARD.read_text())
    plt.style.use("dark_background")
    figure, axes = plt.subplots(3, 3, figsize=(15, 9), constrained_layout=True, facecolor="#111217")
    figure.suptitle(f"{board['title']} (drawn by tools/board.py from a devnet run)", fontsize=13)
    for panel, axis in zip(board["panels"], axes.flat, strict=True):
        axis.set_facecolor("#181b1f")
        axis.set_title(panel["title"], fontsize=10, loc="left")
        for target in panel["targets"]:
            for legend, points in lines(target, scrapes).items():
                axis.plot(*zip(*points, strict=True), label=legend, linewidth=1.4)
        axis.set_ylim(bottom=0)
        axis.grid(color="#2c3235", linewidth=0.6)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7, loc="upper left", framealpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    draw(run())
