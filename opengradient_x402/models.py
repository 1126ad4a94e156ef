"""Which models there are, under which names, with which limits, abilities and published prices.

The catalog is `models.json`, read on first use; each of its rows says where its facts come from. What a gateway
serves today is not known: so a call with an unknown name is not refused. The price of OPG in USD is not known here
either. So the worst case of a call in OPG needs a gateway's price claim; without one, it is all that the call's
payment authorizes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from fractions import Fraction
from functools import cache
from math import ceil
from pkgutil import get_data
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.errors import ConfigurationError, UnknownModel

DEFAULT_OUTPUT_TOKENS: Final = 4096
"""What gateways assume when a request has no `max_tokens` (docs/wire.md, "Limits")."""

_SLIP: Final = 0.8
"""From this similarity on (0 to 1), a name is suggested for an unknown one."""
_PROVIDER_ALIASES: Final = {"xai": "x-ai", "gemini": "google", "claude": "anthropic"}
_TOKENS_PER_PRICE: Final = 1_000_000
_PRICE: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,24})?", re.ASCII)


class TEE_LLM(StrEnum):  # noqa: N801 - the name that OpenGradient's SDK and tutorials use
    """Model names as attributes: `TEE_LLM.GPT_5 == "openai/gpt-5"`. Any other name of the catalog works as text."""

    GPT_4_1_2025_04_14 = "openai/gpt-4.1-2025-04-14"
    GPT_4_1_MINI = "openai/gpt-4.1-mini"
    GPT_4_1_NANO = "openai/gpt-4.1-nano"
    O3 = "openai/o3"
    O4_MINI = "openai/o4-mini"
    GPT_5 = "openai/gpt-5"
    GPT_5_MINI = "openai/gpt-5-mini"
    GPT_5_2 = "openai/gpt-5.2"
    GPT_5_4 = "openai/gpt-5.4"
    GPT_5_4_MINI = "openai/gpt-5.4-mini"
    GPT_5_4_NANO = "openai/gpt-5.4-nano"
    GPT_5_5 = "openai/gpt-5.5"
    GPT_IMAGE_2 = "openai/gpt-image-2"

    CLAUDE_SONNET_4_5 = "anthropic/claude-sonnet-4-5"
    CLAUDE_SONNET_4_6 = "anthropic/claude-sonnet-4-6"
    CLAUDE_HAIKU_4_5 = "anthropic/claude-haiku-4-5"
    CLAUDE_OPUS_4_5 = "anthropic/claude-opus-4-5"
    CLAUDE_OPUS_4_6 = "anthropic/claude-opus-4-6"
    CLAUDE_OPUS_4_7 = "anthropic/claude-opus-4-7"
    CLAUDE_OPUS_4_8 = "anthropic/claude-opus-4-8"

    GEMINI_2_5_FLASH = "google/gemini-2.5-flash"
    GEMINI_2_5_PRO = "google/gemini-2.5-pro"
    GEMINI_2_5_FLASH_LITE = "google/gemini-2.5-flash-lite"
    GEMINI_3_FLASH = "google/gemini-3-flash-preview"
    GEMINI_3_1_PRO_PREVIEW = "google/gemini-3.1-pro-preview"
    GEMINI_3_1_FLASH_LITE_PREVIEW = "google/gemini-3.1-flash-lite-preview"
    GEMINI_3_5_FLASH = "google/gemini-3.5-flash"
    GEMINI_2_5_FLASH_IMAGE = "google/gemini-2.5-flash-image"
    GEMINI_3_1_FLASH_IMAGE = "google/gemini-3.1-flash-image"

    GROK_4 = "x-ai/grok-4"
    GROK_4_FAST = "x-ai/grok-4-fast"
    GROK_4_1_FAST = "x-ai/grok-4-1-fast"
    GROK_4_1_FAST_NON_REASONING = "x-ai/grok-4-1-fast-non-reasoning"
    GROK_4_20_REASONING = "x-ai/grok-4.20-reasoning"
    GROK_4_20_NON_REASONING = "x-ai/grok-4.20-non-reasoning"
    GROK_CODE_FAST_1 = "x-ai/grok-code-fast-1"
    GROK_2_IMAGE = "x-ai/grok-2-image"

    SEED_1_6 = "bytedance/seed-1.6"
    SEED_1_8 = "bytedance/seed-1.8"
    SEED_2_0_LITE = "bytedance/seed-2.0-lite"
    DEEPSEEK_V4_FLASH = "bytedance/deepseek-v4-flash"
    DEEPSEEK_V4_PRO = "bytedance/deepseek-v4-pro"
    SEEDREAM_4_0 = "bytedance/seedream-4.0"
    SEEDANCE_4_5 = "bytedance/seedance-4.5"

    HERMES_4_405B = "nous/hermes-4-405b"
    HERMES_4_70B = "nous/hermes-4-70b"

    GLM_5_2 = "zai/glm-5.2"
    GLM_IMAGE = "zai/glm-image"

    # Names of older SDKs
    GPT_4_1 = "openai/gpt-4.1"
    GPT_4O = "openai/gpt-4o"
    GPT_4O_MINI = "openai/gpt-4o-mini"
    GPT_5_NANO = "openai/gpt-5-nano"
    GPT_5_1 = "openai/gpt-5.1"
    CLAUDE_3_5_HAIKU = "anthropic/claude-3.5-haiku"
    CLAUDE_3_7_SONNET = "anthropic/claude-3.7-sonnet"
    CLAUDE_4_0_SONNET = "anthropic/claude-4.0-sonnet"
    CLAUDE_OPUS_4_1 = "anthropic/claude-opus-4-1"
    GEMINI_2_0_FLASH = "google/gemini-2.0-flash"
    GEMINI_3_PRO = "google/gemini-3-pro-preview"
    GROK_3_BETA = "x-ai/grok-3-beta"
    GROK_3_MINI_BETA = "x-ai/grok-3-mini-beta"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPromptPrice:
    """The prices that hold for a whole call once its prompt is longer than `above_tokens`."""

    above_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model of the catalog. Prices are USD per million tokens; what no source says is None.

    `source` says who knows the name, and since when (`as_of`); `price_source` and `price_as_of` say it of the price.
    Neither the newest SDK nor the newest public gateway code knows a model that `is_deprecated`.
    """

    name: str
    provider: str
    wire_name: str
    source: str
    as_of: date
    is_deprecated: bool
    context_tokens: int | None
    max_output_tokens: int | None
    input_usd_per_mtok: Decimal | None
    output_usd_per_mtok: Decimal | None
    long_prompt: LongPromptPrice | None
    price_source: str | None
    price_as_of: date | None
    supports_tools: bool | None
    supports_json_schema: bool | None
    supports_reasoning: bool | None
    supports_images: bool | None
    supports_pdf: bool | None
    supports_audio: bool | None
    supports_image_output: bool | None

    def cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> Decimal | None:
        """The published price of so many tokens, without discounts for cached ones; None when none is published."""
        input_usd, output_usd = self.input_usd_per_mtok, self.output_usd_per_mtok
        if self.long_prompt is not None and prompt_tokens > self.long_prompt.above_tokens:
            input_usd, output_usd = self.long_prompt.input_usd_per_mtok, self.long_prompt.output_usd_per_mtok
        if input_usd is None or output_usd is None:
            return None
        return (prompt_tokens * input_usd + completion_tokens * output_usd) / _TOKENS_PER_PRICE

    def worst_case_cost_usd(self, *, prompt_tokens: int, max_tokens: int | None = None) -> Decimal | None:
        """The published price when the answer takes all the tokens that it may.

        `max_tokens=None` is what gateways make of its absence: 4096.
        """
        output = DEFAULT_OUTPUT_TOKENS if max_tokens is None else max_tokens
        if self.max_output_tokens is not None:
            output = min(output, self.max_output_tokens)
        return self.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=output)


def find_model(name: object) -> ModelInfo | None:
    """The catalog's entry for a name; None when there is none.

    Takes `openai/gpt-5`, the bare `gpt-5`, other spellings (`claude-sonnet-4.6`, `xai/grok-4`, any case), and
    members of other enums by their `value`.
    """
    text = _text_of(name)
    return None if text is None else _index().get(_normalized(text))


def nearest_models(name: object) -> list[str]:
    """The names of the catalog that are close to an unknown one, at most three; none that is deprecated."""
    text = (_text_of(name) or "").lower()
    current = [model for model in catalog() if not model.is_deprecated]
    if "/" in text:
        return get_close_matches(text, [model.name for model in current], n=3, cutoff=0.5)
    full_names = {model.wire_name: model.name for model in current}
    return [full_names[close] for close in get_close_matches(text, full_names, n=3, cutoff=0.5)]


def is_same_model(name: str, other: str) -> bool:
    """Whether two names mean the same model, however they are spelled."""
    one, two = find_model(name), find_model(other)
    return name == other if one is None or two is None else one is two


def wire_name(name: object) -> str:
    """What a request calls the model: the part after the provider, as given when the catalog has no entry.

    Gateways compare names exactly, so another spelling of a name (`Claude-Sonnet-4.6`) becomes the catalog's. A
    second name of a model is kept, since a gateway may know that one (`grok-4-0709`).
    Raises UnknownModel for text that cannot be a name.
    """
    text = _text_of(name)
    if text is None or not text.strip():
        raise UnknownModel(f"{name!r} is not the name of a model. Nothing was paid. Give one such as openai/gpt-5.")
    provider, _, bare = text.strip().rpartition("/")
    known = _spellings().get(_normalized(text), ())
    if known:
        return bare if bare in known else known[0]
    known_providers = {model.provider for model in catalog()} | _PROVIDER_ALIASES.keys() | {""}
    return bare if provider.lower() in known_providers else text.strip()


@cache
def catalog() -> tuple[ModelInfo, ...]:
    """Every model of the catalog."""
    document = _document()
    dates = {name: date.fromisoformat(source["as_of"]) for name, source in document["sources"].items()}
    return tuple(_info(row, dates) for row in document["models"])


@cache
def _document() -> dict[str, Any]:
    # As a module is read: this may happen in an event loop, and the package may be in an archive.
    document: dict[str, Any] = strict_json.loads(get_data(__package__, "models.json") or b"")
    return document


def usd_to_atomic(cost_usd: Decimal, *, asset_usd: Decimal, decimals: int) -> int:
    """What a gateway charges for a cost: `ceil(usd / token price)` in atomic units (docs/wire.md, "Quotes").

    `decimals` are the token's; `asset_usd`, the price of one token, is a claim of the gateway.
    """
    if asset_usd <= 0:
        raise ValueError(f"A token price of {asset_usd} USD cannot be right.")
    cost: Fraction = Fraction(cost_usd) * 10**decimals / Fraction(asset_usd)
    return ceil(cost)


def quoted_price(text: object) -> Decimal | None:
    """The price of one token as a gateway writes it; None for what is no price.

    No exponents: `1e-999999999` is short, and calculating with it would never end.
    """
    if not isinstance(text, str) or _PRICE.fullmatch(text) is None:
        return None
    price = Decimal(text)
    return price if price > 0 else None


@cache
def _index() -> dict[str, ModelInfo]:
    index: dict[str, ModelInfo] = {}
    for row, info in zip(_document()["models"], catalog(), strict=True):
        for bare in (info.wire_name, *row.get("aliases", ())):
            index[_normalized(bare)] = index[_normalized(f"{info.provider}/{bare}")] = info
    return index


@cache
def _spellings() -> dict[str, list[str]]:
    """Every name of the catalog, with and without its provider, and how requests may spell it."""
    spellings: dict[str, list[str]] = {}
    for row, info in zip(_document()["models"], catalog(), strict=True):
        for bare in (info.wire_name, *row.get("aliases", ())):
            for name in (bare, f"{info.provider}/{bare}"):
                spellings.setdefault(_normalized(name), []).append(bare)
    return spellings


def _text_of(name: object) -> str | None:
    value = getattr(name, "value", name)
    return str(value) if isinstance(value, str) else None


def _normalized(name: str) -> str:
    provider, slash, bare = name.strip().lower().rpartition("/")
    provider = _PROVIDER_ALIASES.get(provider, provider)
    return provider + slash + bare.replace(".", "-").replace("_", "-")


def _info(row: Mapping[str, Any], dates: Mapping[str, date]) -> ModelInfo:
    provider, _, bare = row["name"].partition("/")
    long_prompt, price_source, abilities = row.get("long_prompt"), row.get("price_source"), row.get("abilities")

    def can(letter: str) -> bool | None:
        return None if abilities is None else letter in abilities

    return ModelInfo(
        name=row["name"],
        provider=provider,
        wire_name=bare,
        source=row["source"],
        as_of=dates[row["source"]],
        is_deprecated=row.get("deprecated", False),
        context_tokens=row.get("context_tokens"),
        max_output_tokens=row.get("max_output_tokens"),
        input_usd_per_mtok=_usd(row.get("input_usd_per_mtok")),
        output_usd_per_mtok=_usd(row.get("output_usd_per_mtok")),
        long_prompt=None
        if long_prompt is None
        else LongPromptPrice(
            above_tokens=long_prompt["above_tokens"],
            input_usd_per_mtok=Decimal(long_prompt["input_usd_per_mtok"]),
            output_usd_per_mtok=Decimal(long_prompt["output_usd_per_mtok"]),
        ),
        price_source=price_source,
        price_as_of=None if price_source is None else dates[price_source],
        supports_tools=can("t"),
        supports_json_schema=can("j"),
        supports_reasoning=can("r"),
        supports_images=can("i"),
        supports_pdf=can("p"),
        supports_audio=can("a"),
        supports_image_output=can("o"),
    )


def _usd(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def check_name(name: str) -> None:
    """A model's name in `max_per_model`: a misspelled one would never apply.

    Raises ConfigurationError for a pattern. Warns when the catalog has no such model, but one with a similar name.
    """
    if not name.strip() or "*" in name:
        raise ConfigurationError(
            f"max_per_model has {name!r}, which is not the name of a model. Nothing was paid. Name each model; "
            "`max_per_call` holds for all."
        )
    known = [spelling for model in catalog() for spelling in (model.name, model.wire_name)]
    if find_model(name) is None and (close := get_close_matches(name, known, n=1, cutoff=_SLIP)):
        warnings.warn(
            f"max_per_model has {name!r}, which is not in the catalog. Did you mean {close[0]!r}? For a model of your "
            "own gateway the name must be as in the call.",
            UserWarning,
            stacklevel=4,
        )
