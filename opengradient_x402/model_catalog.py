"""The model catalog as data: limits, published prices, capabilities. Rows only; `models` reads them.

Sources: the names are those of OpenGradient's SDK (`TEE_LLM`, versions 0.5 to 1.1); limits and USD prices per
million tokens are those of the providers' public price lists (openai.com/api/pricing, anthropic.com/pricing,
ai.google.dev/pricing, docs.x.ai/docs/models) as known on `AS_OF`. A gateway sets its own prices: for money
these rows are an estimate, never a limit.

`long` is (prompt tokens, input price, output price): what applies when a prompt is longer than that.
Capabilities: t tools, j JSON schema, r reasoning, i image input, p PDF input, a audio input, o image output.
"""

from __future__ import annotations

from datetime import date
from typing import Final, NamedTuple

AS_OF: Final = date(2026, 2, 20)


class Row(NamedTuple):
    """One model; amounts are decimal text."""

    name: str
    context_tokens: int
    max_output_tokens: int
    input_usd: str
    output_usd: str
    abilities: str
    aliases: tuple[str, ...] = ()
    long: tuple[int, str, str] | None = None


_SONNET_LONG: Final = (200_000, "6", "22.50")

ROWS: Final = (
    Row("openai/gpt-5.2", 400_000, 128_000, "1.75", "14", "tjrip"),
    Row("openai/gpt-5.1", 400_000, 128_000, "1.25", "10", "tjrip"),
    Row("openai/gpt-5", 400_000, 128_000, "1.25", "10", "tjrip"),
    Row("openai/gpt-5-mini", 400_000, 128_000, "0.25", "2", "tjrip"),
    Row("openai/gpt-5-nano", 400_000, 128_000, "0.05", "0.40", "tjrip"),
    Row("openai/gpt-4.1", 1_047_576, 32_768, "2", "8", "tjip", ("gpt-4.1-2025-04-14",)),
    Row("openai/gpt-4.1-mini", 1_047_576, 32_768, "0.40", "1.60", "tjip"),
    Row("openai/gpt-4.1-nano", 1_047_576, 32_768, "0.10", "0.40", "tjip"),
    Row("openai/gpt-4o", 128_000, 16_384, "2.50", "10", "tjip"),
    Row("openai/gpt-4o-mini", 128_000, 16_384, "0.15", "0.60", "tjip"),
    Row("openai/o3", 200_000, 100_000, "2", "8", "tjrip"),
    Row("openai/o4-mini", 200_000, 100_000, "1.10", "4.40", "tjrip"),
    Row("anthropic/claude-opus-4-6", 200_000, 128_000, "5", "25", "tjrip", long=(200_000, "10", "37.50")),
    Row("anthropic/claude-opus-4-5", 200_000, 64_000, "5", "25", "tjrip"),
    Row("anthropic/claude-opus-4-1", 200_000, 32_000, "15", "75", "tjrip"),
    Row("anthropic/claude-sonnet-4-6", 200_000, 64_000, "3", "15", "tjrip", long=_SONNET_LONG),
    Row("anthropic/claude-sonnet-4-5", 200_000, 64_000, "3", "15", "tjrip", long=_SONNET_LONG),
    Row(
        "anthropic/claude-sonnet-4-0",
        200_000,
        64_000,
        "3",
        "15",
        "trip",
        ("claude-4.0-sonnet", "claude-sonnet-4"),
        _SONNET_LONG,
    ),
    Row("anthropic/claude-haiku-4-5", 200_000, 64_000, "1", "5", "tjrip"),
    Row("anthropic/claude-3-7-sonnet", 200_000, 64_000, "3", "15", "trip", ("claude-3-7-sonnet-latest",)),
    Row("anthropic/claude-3-5-haiku", 200_000, 8_192, "0.80", "4", "tip", ("claude-3-5-haiku-latest",)),
    Row(
        "google/gemini-3-pro-preview",
        1_048_576,
        65_536,
        "2",
        "12",
        "tjripa",
        ("gemini-3-pro",),
        (200_000, "4", "18"),
    ),
    Row("google/gemini-3-flash-preview", 1_048_576, 65_536, "0.50", "3", "tjripa", ("gemini-3-flash",)),
    Row("google/gemini-2.5-pro", 1_048_576, 65_536, "1.25", "10", "tjripa", long=(200_000, "2.50", "15")),
    Row("google/gemini-2.5-flash", 1_048_576, 65_536, "0.30", "2.50", "tjripa"),
    Row("google/gemini-2.5-flash-image", 32_768, 32_768, "0.30", "30", "io"),
    Row("google/gemini-2.5-flash-lite", 1_048_576, 65_536, "0.10", "0.40", "tjripa"),
    Row("google/gemini-2.0-flash", 1_048_576, 8_192, "0.10", "0.40", "tjipa"),
    Row("x-ai/grok-4", 256_000, 256_000, "3", "15", "tjri", ("grok-4-0709",), (128_000, "6", "30")),
    Row("x-ai/grok-4-fast", 2_000_000, 30_000, "0.20", "0.50", "tjri", (), (128_000, "0.40", "1")),
    Row("x-ai/grok-4-1-fast", 2_000_000, 30_000, "0.20", "0.50", "tjri", (), (128_000, "0.40", "1")),
    Row(
        "x-ai/grok-4-1-fast-non-reasoning",
        2_000_000,
        30_000,
        "0.20",
        "0.50",
        "tji",
        (),
        (128_000, "0.40", "1"),
    ),
    Row("x-ai/grok-3-beta", 131_072, 131_072, "3", "15", "tj", ("grok-3",)),
    Row("x-ai/grok-3-mini-beta", 131_072, 131_072, "0.30", "0.50", "tjr", ("grok-3-mini",)),
)
