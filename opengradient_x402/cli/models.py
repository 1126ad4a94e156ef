"""`opengradient-x402 models`: names, limits and prices, from the catalog or from a gateway itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengradient_x402.cli.options import GatewayOption, JsonOption, NetworkOption, network_of

if TYPE_CHECKING:
    from opengradient_x402.models import ModelInfo

_ABILITIES = {
    "tools": "t",
    "json_schema": "j",
    "reasoning": "r",
    "images": "i",
    "pdf": "p",
    "audio": "a",
    "image_output": "o",
}
"""Each with its letter in a narrow table."""
_HEADINGS = ("model", "context", "max output", "in $/M", "out $/M", "price of", "abilities")
_NARROW_HEADINGS = ("model", "ctx", "out", "in $/M", "out $/M", "can do")
_LETTERS = (
    "ctx, out: tokens. Can do: t tools, j JSON Schema, r reasoning, i images, p PDF, a audio, o image output; "
    "old: deprecated."
)
_WIDE = 150
"""Columns of the table with everything."""


def models(
    search: Annotated[str, typer.Argument(help="Only models whose name contains this.")] = "",
    live: Annotated[bool, typer.Option("--live", help="Ask the gateway what it serves, and for how much.")] = False,
    network: NetworkOption = None,
    gateway: GatewayOption = None,
    as_json: JsonOption = False,
) -> None:
    """List models with their limits and prices (USD per million tokens)."""
    from opengradient_x402.cli.output import columns, note, print_json, print_table, working
    from opengradient_x402.models import catalog

    if live:
        with working("Asking the gateway"):
            rows, remark = _served(network, gateway)
    else:
        rows = [_row(info) for info in catalog()]
        remark = (
            "Published prices. A gateway may have others: `--live` asks it. `?`: no public source says it. Without a "
            "published price, limits count a call as all that its payment authorizes."
        )
    chosen = [row for row in rows if search.lower() in row["name"].lower()]
    if as_json:
        print_json(chosen)
        return
    if not chosen:
        typer.echo(f"No model's name contains {search!r}.{_meant(search, [row['name'] for row in rows])}", err=True)
        return
    if columns() < _WIDE:
        print_table(_NARROW_HEADINGS, map(_narrow, chosen), right=_NARROW_HEADINGS[1:5])
        note(_LETTERS)
    else:
        print_table(_HEADINGS, [_wide(row, is_live=live) for row in chosen], right=_HEADINGS[1:5])
    note(remark)


def _meant(search: str, names: list[str]) -> str:
    """A sentence with the names that are close to what was typed, or that have a part which is."""
    from difflib import get_close_matches

    parts: dict[str, list[str]] = {}
    for name in names:
        for part in (name.lower(), *name.lower().replace("/", "-").split("-")):
            parts.setdefault(part, []).append(name)
    close = get_close_matches(search.lower(), parts, n=3, cutoff=0.6)
    found = list(dict.fromkeys(name for part in close for name in parts[part]))[:3]
    return f" Did you mean {' or '.join(found)}?" if found else " `opengradient-x402 models` lists all."


def _wide(row: dict[str, Any], *, is_live: bool) -> tuple[str, ...]:
    return (
        row["name"],
        _count(row["context_tokens"]),
        _count(row["max_output_tokens"]),
        _price(row["input_usd_per_mtok"]),
        _price(row["output_usd_per_mtok"]),
        row["price_as_of"] or ("" if is_live else "no published price"),
        "deprecated" if row["deprecated"] else " ".join(row["abilities"] or ["?"]),
    )


def _narrow(row: dict[str, Any]) -> tuple[str, ...]:
    """For 80 columns: tokens in thousands or millions, and a letter for each ability."""
    letters = "".join(letter if name in (row["abilities"] or ()) else "·" for name, letter in _ABILITIES.items())
    return (
        row["name"],
        _short_count(row["context_tokens"]),
        _short_count(row["max_output_tokens"]),
        _price(row["input_usd_per_mtok"]),
        _price(row["output_usd_per_mtok"]),
        "old" if row["deprecated"] else letters if row["abilities"] else "?",
    )


def _price(usd: str | None) -> str:
    """With two digits behind the point at least, so that points stand below each other."""
    if not usd or usd == "?":
        return "?"
    whole, _, fraction = usd.partition(".")
    return f"{whole}.{fraction:0<2}"


def _short_count(tokens: int | None) -> str:
    if not tokens:
        return "?"
    return f"{tokens / 1_000_000:.1f}M" if tokens >= 1_000_000 else f"{tokens // 1000}k"


def _count(tokens: int | None) -> str:
    return f"{tokens:,}" if tokens else "?"


def _row(info: ModelInfo) -> dict[str, Any]:
    knows_abilities = info.supports_tools is not None
    return {
        "name": info.name,
        "context_tokens": info.context_tokens,
        "max_output_tokens": info.max_output_tokens,
        "input_usd_per_mtok": None if info.input_usd_per_mtok is None else str(info.input_usd_per_mtok),
        "output_usd_per_mtok": None if info.output_usd_per_mtok is None else str(info.output_usd_per_mtok),
        "price_as_of": None if info.price_as_of is None else info.price_as_of.isoformat(),
        "price_source": info.price_source,
        "source": info.source,
        "deprecated": info.is_deprecated,
        "abilities": [name for name in _ABILITIES if getattr(info, f"supports_{name}")] if knows_abilities else None,
    }


def _served(network: str | None, gateway: str | None) -> tuple[list[dict[str, Any]], str]:
    """A gateway's own list. Raises GatewayUnreachable when it has none."""
    from opengradient_x402.chain.node import look_up
    from opengradient_x402.chain.sources import Sources
    from opengradient_x402.cli.options import gateway_of
    from opengradient_x402.errors import GatewayUnreachable
    from opengradient_x402.payment.policy import SpendPolicy

    chosen = network_of(network)
    url = gateway_of(gateway, chosen).rstrip("/").removesuffix("/v1") + "/v1/models"
    SpendPolicy().check_endpoint(url)
    document = look_up(Sources().document(url))
    try:
        rows, token_usd = _parsed(document.content)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise GatewayUnreachable(
            f"{url} gave no list of models ({document.problem or type(exc).__name__}). Nothing was paid. "
            "Leave out `--live` for the catalog."
        ) from exc
    return rows, f"Prices of {url}" + (f"; one {chosen.asset.symbol} is {token_usd} USD there." if token_usd else ".")


def _parsed(content: bytes) -> tuple[list[dict[str, Any]], str | None]:
    from opengradient_x402 import strict_json
    from opengradient_x402.models import find_model

    document = strict_json.loads(content)
    rows = []
    for entry in document["data"]:
        info = find_model(entry["id"])
        known = _row(info) if info is not None else {"abilities": None}
        prices = entry.get("pricing") or {}
        rows.append(
            {
                "name": entry["id"] if not entry.get("owned_by") else f"{entry['owned_by']}/{entry['id']}",
                "context_tokens": int(entry.get("context_length") or known.get("context_tokens") or 0),
                "max_output_tokens": int(entry.get("max_output_tokens") or known.get("max_output_tokens") or 0),
                "input_usd_per_mtok": str(prices.get("input_usd_per_mtok", "?")),
                "output_usd_per_mtok": str(prices.get("output_usd_per_mtok", "?")),
                "price_as_of": None,
                "deprecated": False,
                "abilities": known["abilities"],
            }
        )
    token_usd = document.get("opg_price_usd")
    return rows, None if token_usd is None else str(token_usd)
