"""Draws what commands show in a terminal of 80 columns, from a real run: `uv run --with pyte python tools/screens.py`.

Writes `docs/images/*.svg`, and a page as Chromium shows it. Each command runs in a pseudo-terminal, so what is drawn is
what a user sees.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from contextlib import closing, nullcontext
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from opengradient_devnet import Devnet
from opengradient_x402 import Payments, load_network, named_run
from opengradient_x402.gateway.client import GatewayClient

IMAGES = Path(__file__).parents[1] / "docs" / "images"
BIN = Path(sys.executable).parent
COLUMNS = 80
LINES = 200
LONGEST_S = 180
PAGE = "1180,1500"
SETTLED = {
    ("batch", "nightly report"): ("openai/gpt-5", "openai/gpt-5", "anthropic/claude-sonnet-4-6"),
    ("batch", "answer to a customer"): ("google/gemini-2.5-flash",),
    ("individual", "answer to a customer"): ("anthropic/claude-sonnet-4-6",),
    ("private", None): ("openai/gpt-5-mini",),
}
"""Models by settlement mode and run."""
THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
    [
        (110, 118, 129),
        (255, 161, 152),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (255, 255, 255),
    ],
)
_PLAIN = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_NAMES = {name: name for name in _PLAIN} | {f"bright{name}": f"bright_{name}" for name in _PLAIN} | {"brown": "yellow"}
"""Rich's names of the colours that pyte names; pyte has the others as hex digits."""
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def seen(command: str, *, env: dict[str, str]) -> Text:
    """What a terminal shows of the command when it has ended, with its colours."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, LINES)
    terminal = pyte.ByteStream(screen)
    program, *arguments = shlex.split(command)
    # Nothing can be typed: a program that would wait for a key sees that.
    with subprocess.Popen([BIN / program, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=child, stderr=child):
        os.close(child)
        while select.select([parent], [], [], LONGEST_S)[0]:
            try:
                terminal.feed(os.read(parent, 65536))
            except OSError:  # it has ended
                break
    os.close(parent)
    return Text("\n").join(_line(screen, row) for row in range(screen.cursor.y + 1))


def _line(screen: pyte.Screen, row: int) -> Text:
    line = Text()
    for column in range(COLUMNS):
        cell = screen.buffer[row][column]
        colour = None if cell.fg == "default" else _NAMES.get(cell.fg, f"#{cell.fg}")
        line.append(cell.data, Style(color=colour, bold=cell.bold, italic=cell.italics))
    line.rstrip()
    return line


def draw(name: str, command: str, *, env: dict[str, str]) -> None:
    """Writes `docs/images/NAME.svg`."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {command}", style="bold"))
        console.print(seen(command, env=env))
        svg = console.export_svg(title=command, theme=THEME, code_format=_SVG, unique_id=name, font_aspect_ratio=0.6)
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def pay(net: Devnet, env: dict[str, str]) -> None:
    """A morning's calls: some settled, in two modes, and a session that is open."""
    payments = Payments.open(
        network=load_network(env["OG_NETWORK"]), private_key=env["OG_PRIVATE_KEY"], ledger=env["OG_LEDGER_URL"]
    )
    with closing(payments):
        for (mode, run), models in SETTLED.items():
            named = nullcontext() if run is None else named_run(run)
            with named, GatewayClient(payments, settlement_mode=mode) as client:
                for model in models:
                    client.chat(asked(model))
        net.flush_batches()
        net.close_sessions()
        payments.reconciler.reconcile()
        with GatewayClient(payments) as client:
            client.chat(asked("openai/gpt-5"))


def asked(model: str) -> dict[str, object]:
    """A short question."""
    return {"model": model, "messages": [{"role": "user", "content": "What is x402, in one sentence?"}]}


def draw_page(name: str, page: Path) -> None:
    """Writes `docs/images/NAME.png`, as a browser shows the beginning of the page."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={PAGE}")
    picture = IMAGES / f"{name}.png"
    subprocess.run(["chromium", *flags, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Draws every screen that README and docs show."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.defpath, "HOME": home, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        draw("demo", "opengradient-x402 demo", env=env)
        with Devnet(network_file=Path(home) / "devnet.json") as net:
            env |= {
                "OG_NETWORK": str(net.network_file),
                "OG_PRIVATE_KEY": net.account(opg="10", approved=True).private_key,
                "OG_LEDGER_URL": f"sqlite:///{home}/ledger.sqlite",
            }
            pay(net, env)
            draw("receipts", "opengradient-x402 receipts list", env=env)
            draw("runs", "opengradient-x402 receipts list --by run", env=env)
            page = Path(home) / "report.html"
            report = [BIN / "opengradient-x402", "receipts", "report", "--output", page]
            subprocess.run(report, env=env, check=True, capture_output=True)
            draw_page("report", page)


if __name__ == "__main__":
    main()
