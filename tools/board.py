"""Draws docs/images/board.png: the panels of docs/monitoring/grafana.json, fed by a run on a devnet.

It is not Grafana: it reads the same file, and plots what a Prometheus server, which has scraped the run, answers to
the same queries. It needs the program `prometheus` (`apt-get install prometheus`), and takes ten minutes.

    python tools/board.py
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from opengradient_devnet import Devnet
from opengradient_devnet.faults import AnswerStatus, HangUp, SettleAtCap
from opengradient_x402 import GatewayClient, OpenGradientError, Payments, SpendPolicy
from opengradient_x402.telemetry.metrics import instrument

ROOT = Path(__file__).parents[1]
BOARD, PICTURE = ROOT / "docs" / "monitoring" / "grafana.json", ROOT / "docs" / "images" / "board.png"
RUN_S, SCRAPE_S = 600.0, 2
MODELS = ("openai/gpt-5", "openai/gpt-5-mini", "anthropic/claude-sonnet-4-5")
CONFIG = """
global: {{scrape_interval: {scrape_s}s}}
scrape_configs:
  - job_name: answers
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


# -- the run


def work(payments: Payments, ends: float, pause_s: float) -> None:
    """One user who asks, with pauses, until the run ends."""
    draw = random.Random(payments.payer)
    with GatewayClient(payments) as client:
        while time.monotonic() < ends:
            body = {"model": draw.choice(MODELS), "messages": [{"role": "user", "content": "Tell me of receipts."}]}
            with suppress(OpenGradientError):
                client.chat({**body, "max_tokens": draw.choice((40, 200, 800))})
            time.sleep(draw.uniform(0, 2 * pause_s))


def run(net: Devnet, folder: Path, run_s: float) -> None:
    """Two wallets, one of them poor, whose sessions settle eight times. The gateway fails now and then, hangs up once,
    and takes too much at the end of the last session but one."""
    wallets = [
        Payments.open(
            network=f"{net.gateway_url}/network",
            private_key=net.account(opg="50", approved=True).private_key,
            policy=SpendPolicy(max_per_day=budget),
            ledger=folder / "ledger.sqlite",
        )
        for budget in ("8", "0.25")
    ]
    ends = time.monotonic() + run_s
    users = [
        threading.Thread(target=work, args=(wallet, ends, pause_s))
        for wallet, pause_s in zip((*wallets, wallets[0]), (0.6, 2.0, 1.0), strict=True)
    ]
    for user in users:
        user.start()
    for part in range(1, 9):
        time.sleep(run_s / 18)
        net.faults.inject(HangUp() if part == 4 else AnswerStatus(status=503), times=1 if part == 4 else 2)
        time.sleep(run_s / 18)
        if part == 7:
            net.faults.inject(SettleAtCap())
        net.close_sessions()
        wallets[0].reconciler.reconcile()
    for user in users:
        user.join()
    for wallet in wallets:
        wallet.close()


# -- Prometheus


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prometheus(program: str, folder: Path, scraped_port: int) -> Generator[str]:
    """A server that scrapes this process; gives its URL."""
    port, config = free_port(), folder / "prometheus.yml"
    config.write_text(CONFIG.format(scrape_s=SCRAPE_S, port=scraped_port))
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def ask(url: str, query: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of a query, every two seconds: `metric` with its labels, and `values` of time and text."""
    asked = {"query": query, "start": start, "end": end, "step": SCRAPE_S}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


# -- the picture

Line = tuple[list[float], list[float]]
"""Minutes since the start, and values."""


def lines(panel: dict[str, Any], url: str, start: float, end: float) -> dict[str, Line]:
    """The lines of a panel, by their legend."""
    found: dict[str, Line] = {}
    for target in panel["targets"]:
        for series in ask(url, target["expr"], start, end):
            legend = target["legendFormat"]
            for name, value in series["metric"].items():
                short = f"{value[:8]}…" if value.startswith("0x") else value
                legend = legend.replace("{{%s}}" % name, short)  # noqa: UP031  (braces)
            points = [(when, float(text)) for when, text in series["values"]]
            found[legend] = [(when - start) / 60 for when, _ in points], [value for _, value in points]
    return found


def draw(board: dict[str, Any], found: list[dict[str, Line]], run_s: float, picture: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.style.use("dark_background")
    figure, axes = plt.subplots(3, 3, figsize=(16, 11), constrained_layout=True, facecolor="#111217")
    figure.suptitle(
        f"{board['title']}: {run_s / 60:.0f} minutes of a devnet, from Prometheus (drawn by tools/board.py)",
        fontsize=14,
    )
    for panel, of_panel, axis in zip(board["panels"], found, axes.flat, strict=True):
        axis.set_facecolor("#181b1f")
        axis.set_title(panel["title"], fontsize=11, loc="left")
        for legend, (minutes, values) in of_panel.items():
            axis.plot(minutes, values, label=legend, linewidth=1.5)
        axis.set_xlim(0, run_s / 60)
        axis.set_ylim(0, None if any(max(values) for _, values in of_panel.values()) else 1)
        axis.set_xlabel("minutes", fontsize=8)
        axis.grid(color="#2c3235", linewidth=0.6)
        axis.tick_params(labelsize=9)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=RUN_S, help="how long the devnet is used")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--prometheus", default="prometheus", help="the program")
    options = parser.parse_args()
    if (program := shutil.which(options.prometheus)) is None:
        parser.error(f"There is no program {options.prometheus}: apt-get install prometheus")
    port = free_port()
    start_http_server(port, addr="127.0.0.1")
    stop = instrument(MeterProvider(metric_readers=[PrometheusMetricReader()]))
    board = json.loads(BOARD.read_text())
    with tempfile.TemporaryDirectory() as name, prometheus(program, Path(name), port) as url:
        start = time.time()
        with Devnet(pace_s=0.001) as net:
            run(net, Path(name), options.seconds)
        time.sleep(2 * SCRAPE_S)
        end = time.time()
        found = [lines(panel, url, start, end) for panel in board["panels"]]
    stop()
    draw(board, found, end - start, options.picture)
    print(
        json.dumps({panel["title"]: sorted(of_panel) for panel, of_panel in zip(board["panels"], found, strict=True)})
    )


if __name__ == "__main__":
    main()
