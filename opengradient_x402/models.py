"""Which models there are, under which names, with which limits, abilities and published prices.

Knows the catalog that was shipped (`model_catalog`), not what a gateway serves today: an unknown name is no
reason to refuse a call. The price of OPG in USD is not known here either. So the worst case of a call in OPG
needs a gateway's price claim; without one, it is all that the call's payment authorizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from fractions import Fraction
from functools import cache
from math import ceil
from typing import Final

from opengradient_x402.errors import UnknownModel
from opengradient_x402.model_catalog import AS_OF, ROWS, Row
from opengradient_x402.money import Asset

DEFAULT_OUTPUT_TOKENS: Final = 4096
"""What gateways assume when a request has no `max_tokens` (docs/wire.md, "Limits")."""

_PROVIDER_ALIASES: Final = {"xai": "x-ai", "gemini": "google", "claude": "anthropic"}
_TOKENS_PER_PRICE: Final = 1_000_000
_PRICE: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,24})?", re.ASCII)


class TEE_LLM(StrEnum):  # noqa: N801 - the name that OpenGradient's SDK and tutorials use
    """Model names as attributes: `TEE_LLM.GPT_5 == "openai/gpt-5"`. Any of the other names works as text."""

    GPT_4_1_2025_04_14 = "openai/gpt-4.1-2025-04-14"
    GPT_4_1 = "openai/gpt-4.1"
    GPT_4_1_MINI = "openai/gpt-4.1-mini"
    GPT_4_1_NANO = "openai/gpt-4.1-nano"
    GPT_4O = "openai/gpt-4o"
    GPT_4O_MINI = "openai/gpt-4o-mini"
    O3 = "openai/o3"
    O4_MINI = "openai/o4-mini"
    GPT_5 = "openai/gpt-5"
    GPT_5_MINI = "openai/gpt-5-mini"
    GPT_5_NANO = "openai/gpt-5-nano"
    GPT_5_1 = "openai/gpt-5.1"
    GPT_5_2 = "openai/gpt-5.2"

    CLAUDE_3_5_HAIKU = "anthropic/claude-3.5-haiku"
    CLAUDE_3_7_SONNET = "anthropic/claude-3.7-sonnet"
    CLAUDE_4_0_SONNET = "anthropic/claude-4.0-sonnet"
    CLAUDE_SONNET_4_5 = "anthropic/claude-sonnet-4-5"
    CLAUDE_SONNET_4_6 = "anthropic/claude-sonnet-4-6"
    CLAUDE_HAIKU_4_5 = "anthropic/claude-haiku-4-5"
    CLAUDE_OPUS_4_1 = "anthropic/claude-opus-4-1"
    CLAUDE_OPUS_4_5 = "anthropic/claude-opus-4-5"
    CLAUDE_OPUS_4_6 = "anthropic/claude-opus-4-6"

    GEMINI_2_0_FLASH = "google/gemini-2.0-flash"
    GEMINI_2_5_FLASH = "google/gemini-2.5-flash"
    GEMINI_2_5_FLASH_IMAGE = "google/gemini-2.5-flash-image"
    GEMINI_2_5_FLASH_LITE = "google/gemini-2.5-flash-lite"
    GEMINI_2_5_PRO = "google/gemini-2.5-pro"
    GEMINI_3_FLASH = "google/gemini-3-flash-preview"
    GEMINI_3_PRO = "google/gemini-3-pro-preview"

    GROK_3_BETA = "x-ai/grok-3-beta"
    GROK_3_MINI_BETA = "x-ai/grok-3-mini-beta"
    GROK_4 = "x-ai/grok-4"
    GROK_4_FAST = "x-ai/grok-4-fast"
    GROK_4_1_FAST = "x-ai/grok-4-1-fast"
    GROK_4_1_FAST_NON_REASONING = "x-ai/grok-4-1-fast-non-reasoning"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPromptPrice:
    """The prices that hold for a whole call once its prompt is longer than `above_tokens`."""

    above_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model of the catalog. Prices are USD per million tokens, as published on `as_of`."""

    name: str
    provider: str
    wire_name: str
    context_tokens: int
    max_output_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    long_prompt: LongPromptPrice | None
    as_of: date
    supports_tools: bool
    supports_json_schema: bool
    supports_reasoning: bool
    supports_images: bool
    supports_pdf: bool
    supports_audio: bool
    supports_image_output: bool

    def cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """The published price of so many tokens, without discounts for cached ones."""
        price: ModelInfo | LongPromptPrice = self
        if self.long_prompt is not None and prompt_tokens > self.long_prompt.above_tokens:
            price = self.long_prompt
        total = prompt_tokens * price.input_usd_per_mtok + completion_tokens * price.output_usd_per_mtok
        return total / _TOKENS_PER_PRICE

    def worst_case_cost_usd(self, *, prompt_tokens: int, max_tokens: int | None = None) -> Decimal:
        """The published price when the answer takes all the tokens that it may.

        `max_tokens=None` is what gateways make of its absence: 4096.
        """
        output = DEFAULT_OUTPUT_TOKENS if max_tokens is None else max_tokens
        return self.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=min(output, self.max_output_tokens))


def find_model(name: object) -> ModelInfo | None:
    """The catalog's entry for a name; None when there is none.

    Takes `openai/gpt-5`, the bare `gpt-5`, other spellings (`claude-sonnet-4.6`, `xai/grok-4`, any case), and
    members of other enums by their `value`.
    """
    text = _text_of(name)
    return None if text is None else _index().get(_normalized(text))


def nearest_models(name: object) -> list[str]:
    """The names of the catalog that are close to an unknown one, at most three."""
    text = (_text_of(name) or "").lower()
    return get_close_matches(text, [model.name for model in catalog()], n=3, cutoff=0.5)


def is_same_model(name: str, other: str) -> bool:
    """Whether two names mean the same model, however they are spelled."""
    one, two = find_model(name), find_model(other)
    return name == other if one is None or two is None else one is two


def wire_name(name: object) -> str:
    """What a request calls the model: the part after the provider, as given when the catalog has no entry.

    The spelling is kept where a gateway may know more versions than the catalog (`gpt-4.1-2025-04-14`).
    Raises UnknownModel for something that is no name at all.
    """
    text = _text_of(name)
    if text is None or not text.strip():
        raise UnknownModel(f"{name!r} is not the name of a model. Nothing was paid. Give one such as openai/gpt-5.")
    provider, _, bare = text.strip().rpartition("/")
    known_providers = {model.provider for model in catalog()} | _PROVIDER_ALIASES.keys() | {""}
    return bare if provider.lower() in known_providers else text.strip()


@cache
def catalog() -> tuple[ModelInfo, ...]:
    """Every model of the catalog."""
    return tuple(_info(row) for row in ROWS)


def usd_to_atomic(cost_usd: Decimal, *, asset_usd: Decimal, asset: Asset) -> int:
    """What a gateway charges for a cost: `ceil(usd / token price)` in atomic units (docs/wire.md, "Quotes").

    `asset_usd`, the price of one token, is a claim of the gateway.
    """
    if asset_usd <= 0:
        raise ValueError(f"A token price of {asset_usd} USD cannot be right.")
    cost: Fraction = Fraction(cost_usd) * 10**asset.decimals / Fraction(asset_usd)
    return ceil(cost)


def quoted_price(text: object) -> Decimal | None:
    """The price of one token as a gateway writes it; None for what is no price.

    No exponents: `1e-999999999` is short, and reckoning with it would take for ever.
    """
    if not isinstance(text, str) or _PRICE.fullmatch(text) is None:
        return None
    price = Decimal(text)
    return price if price > 0 else None


@cache
def _index() -> dict[str, ModelInfo]:
    index: dict[str, ModelInfo] = {}
    for row, info in zip(ROWS, catalog(), strict=True):
        for bare in (info.wire_name, *row.aliases):
            index[_normalized(bare)] = index[_normalized(f"{info.provider}/{bare}")] = info
    return index


def _text_of(name: object) -> str | None:
    value = getattr(name, "value", name)
    return str(value) if isinstance(value, str) else None


def _normalized(name: str) -> str:
    provider, slash, bare = name.strip().lower().rpartition("/")
    provider = _PROVIDER_ALIASES.get(provider, provider)
    return provider + slash + bare.replace(".", "-").replace("_", "-")


def _info(row: Row) -> ModelInfo:
    provider, _, bare = row.name.partition("/")
    return ModelInfo(
        name=row.name,
        provider=provider,
        wire_name=bare,
        context_tokens=row.context_tokens,
        max_output_tokens=row.max_output_tokens,
        input_usd_per_mtok=Decimal(row.input_usd),
        output_usd_per_mtok=Decimal(row.output_usd),
        long_prompt=None
        if row.long is None
        else LongPromptPrice(
            above_tokens=row.long[0],
            input_usd_per_mtok=Decimal(row.long[1]),
            output_usd_per_mtok=Decimal(row.long[2]),
        ),
        as_of=AS_OF,
        supports_tools="t" in row.abilities,
        supports_json_schema="j" in row.abilities,
        supports_reasoning="r" in row.abilities,
        supports_images="i" in row.abilities,
        supports_pdf="p" in row.abilities,
        supports_audio="a" in row.abilities,
        supports_image_output="o" in row.abilities,
    )
