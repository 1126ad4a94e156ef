"""What a call costs: model prices in USD per million tokens, and the OPG price that turns USD into OPG.

Prices are data (`prices.json`, or a file of the same shape) and are read as decimal strings; the cost of a call
is rounded up once, to the atomic unit, as on the live gateways.

A price file, for a gateway of your own (`anything_else` is optional: without it, other models are not sold):

    {"opg_usd": "0.20",
     "models": {"local/llama3.2": {"context_tokens": 131072, "max_output_tokens": 8192,
                                   "input_usd_per_mtok": "0.05", "output_usd_per_mtok": "0.10"}},
     "anything_else": {"context_tokens": 8192, "max_output_tokens": 2048,
                       "input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.20"}}

The part before the first slash is the seller's name for the provider; clients ask for the model with or without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opengradient_devnet.money import OPG_TOKEN, Token, decimal_text

TOKENS_PER_PRICE_UNIT = 10**6

BUILT_IN_PRICES = Path(__file__).with_name("prices.json")


class PriceListInvalid(ValueError):
    """The price file cannot be used; the message names the entry. No call is served with made-up prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """One model on the menu. `name` is the wire name, without the provider prefix."""

    name: str
    provider: str
    context_tokens: int
    max_output_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal

    def cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> Fraction:
        """The exact price of these numbers of tokens."""
        total = prompt_tokens * Fraction(self.input_usd_per_mtok)
        total += completion_tokens * Fraction(self.output_usd_per_mtok)
        return total / TOKENS_PER_PRICE_UNIT


_ANYTHING_ELSE = ModelPrice(
    name="any",
    provider="any",
    context_tokens=128_000,
    max_output_tokens=32_768,
    input_usd_per_mtok=Decimal(1),
    output_usd_per_mtok=Decimal(4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one call: `atomic` is `ceil(usd / token price)` in atomic units, the only rounding there is."""

    atomic: int
    usd: Fraction
    opg_usd: Decimal
    token: Token = OPG_TOKEN

    def times(self, factor: int) -> Cost:
        """This cost, so many times."""
        return replace(self, atomic=self.atomic * factor, usd=self.usd * factor)

    def quote(self) -> dict[str, str]:
        """The `opengradient` object that newer gateways put into their answers; all values are strings."""
        return {
            "cost_opg": self.token.text(self.atomic),
            "cost_usd": decimal_text(self.usd),
            "opg_price_usd": decimal_text(Fraction(self.opg_usd)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """Models by wire name, and the price of one `token` (OPG) in USD. `anything_else` prices other names, if given."""

    models: Mapping[str, ModelPrice]
    opg_usd: Decimal
    as_of: str
    anything_else: ModelPrice | None = None
    token: Token = OPG_TOKEN

    def with_anything_else(self) -> PriceList:
        """This list, with a price for every other name: for upstream servers that have models of their own."""
        return self if self.anything_else is not None else replace(self, anything_else=_ANYTHING_ELSE)

    def find(self, name: str) -> ModelPrice | None:
        """The model called `name`, with or without its provider prefix; None when it is not served."""
        # A local model's own name may have slashes, so the whole name comes first.
        found = self.models.get(name)
        if found is None:
            provider, _, wire_name = name.partition("/")
            found = self.models.get(wire_name)
            if found is not None and provider != found.provider:
                found = None
        return self.anything_else if found is None else found

    def at(self, opg_usd: str) -> PriceList:
        """This list at another price of OPG, in USD."""
        return replace(self, opg_usd=_opg_price(opg_usd))

    def in_token(self, token: Token, *, usd: str) -> PriceList:
        """This list, paid in another token, of which one costs `usd`."""
        return replace(self, token=token, opg_usd=_opg_price(usd))

    def cost(self, model: ModelPrice, *, prompt_tokens: int, completion_tokens: int) -> Cost:
        """What these numbers of tokens of `model` cost."""
        usd = model.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        tokens = usd / Fraction(self.opg_usd) * 10**self.token.decimals
        return Cost(atomic=-(-tokens.numerator // tokens.denominator), usd=usd, opg_usd=self.opg_usd, token=self.token)


def load_prices(source: Path | Mapping[str, Any] | None = None) -> PriceList:
    """Read a price list: the built-in one, a JSON file, or an already parsed object of the same shape."""
    if not isinstance(source, Mapping):
        path = source or BUILT_IN_PRICES
        try:
            source = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise PriceListInvalid(f"Price file {path} cannot be read as JSON: {exc}") from exc
    if not isinstance(source, Mapping) or not isinstance(source.get("models"), Mapping):
        raise PriceListInvalid('A price file needs {"opg_usd": "0.20", "models": {"provider/name": {…}}}.')
    opg_usd = _opg_price(source.get("opg_usd"))
    models = [_model(name, entry) for name, entry in source["models"].items()]
    rest = source.get("anything_else")
    return PriceList(
        models=MappingProxyType({model.name: model for model in models}),
        opg_usd=opg_usd,
        as_of=str(source.get("as_of", "")),
        anything_else=_model("any/any", rest) if rest is not None else None,
    )


def _opg_price(value: Any) -> Decimal:
    price = _price(value, where="opg_usd")
    if price == 0:
        raise PriceListInvalid("opg_usd is 0: no USD price can be turned into OPG with it.")
    return price


def _model(full_name: str, entry: Any) -> ModelPrice:
    provider, slash, name = full_name.partition("/")
    if not slash or not provider or not name or not isinstance(entry, Mapping):
        raise PriceListInvalid(f"Model {full_name!r} needs the form provider/name and an object of prices.")
    return ModelPrice(
        name=name,
        provider=provider,
        context_tokens=_count(entry.get("context_tokens"), where=f"{full_name}.context_tokens"),
        max_output_tokens=_count(entry.get("max_output_tokens"), where=f"{full_name}.max_output_tokens"),
        input_usd_per_mtok=_price(entry.get("input_usd_per_mtok"), where=f"{full_name}.input_usd_per_mtok"),
        output_usd_per_mtok=_price(entry.get("output_usd_per_mtok"), where=f"{full_name}.output_usd_per_mtok"),
    )


def _price(value: Any, *, where: str) -> Decimal:
    # JSON floats are refused: 0.1 is not a tenth, and costs are checked to the wei.
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PriceListInvalid(f'{where} is {value!r}: write prices as decimal strings, such as "1.25".')
    try:
        price = Decimal(value)
    except InvalidOperation as exc:
        raise PriceListInvalid(f"{where} is {value!r}, which is not a decimal number.") from exc
    if not price.is_finite() or price < 0:
        raise PriceListInvalid(f"{where} is {value!r}: a price is a finite number that is not negative.")
    return price


def _count(value: Any, *, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise PriceListInvalid(f"{where} is {value!r}: it counts tokens and must be a positive integer.")
    return value
