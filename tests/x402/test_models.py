from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import Enum

import pytest

from opengradient_devnet.gateway.pricing import load_prices
from opengradient_x402.errors import UnknownModel
from opengradient_x402.models import TEE_LLM, catalog, find_model, nearest_models, usd_to_atomic, wire_name
from opengradient_x402.networks import PRESETS

OPG = PRESETS["base"].asset


def test_the_names_of_the_tutorials_are_the_names_of_models():
    assert TEE_LLM.GPT_5 == "openai/gpt-5"
    assert TEE_LLM.CLAUDE_SONNET_4_6 == "anthropic/claude-sonnet-4-6"
    assert TEE_LLM.GEMINI_2_5_FLASH == "google/gemini-2.5-flash"
    assert TEE_LLM.GROK_4 == "x-ai/grok-4"
    assert f"{TEE_LLM.GPT_5}" == "openai/gpt-5"


@pytest.mark.parametrize("member", TEE_LLM)
def test_every_named_model_is_in_the_catalog(member):
    info = find_model(member)
    assert info is not None
    assert info is find_model(member.value)
    assert member.value.startswith(f"{info.provider}/")


@pytest.mark.parametrize("info", catalog(), ids=lambda info: info.name)
def test_every_entry_is_found_by_its_names_and_makes_sense(info):
    assert find_model(info.name) is find_model(info.wire_name) is find_model(info.name.upper()) is info
    assert info.name == f"{info.provider}/{info.wire_name}"
    assert info.as_of >= date(2026, 2, 20)
    assert (info.context_tokens is None) == (info.max_output_tokens is None) == (info.supports_tools is None)
    assert info.context_tokens is None or 0 < info.max_output_tokens <= info.context_tokens
    assert (info.price_source is None) == (info.price_as_of is None) == (info.input_usd_per_mtok is None)
    if info.price_source is None:
        assert info.cost_usd(prompt_tokens=1, completion_tokens=1) is None
        assert info.worst_case_cost_usd(prompt_tokens=1) is None
    else:
        assert 0 < info.input_usd_per_mtok < info.output_usd_per_mtok < 200
    if info.long_prompt is not None:
        assert info.long_prompt.input_usd_per_mtok > info.input_usd_per_mtok
        assert info.long_prompt.output_usd_per_mtok > info.output_usd_per_mtok


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gpt-5", "openai/gpt-5"),
        ("OpenAI/GPT-5", "openai/gpt-5"),
        ("gpt-4.1-2025-04-14", "openai/gpt-4.1-2025-04-14"),
        ("claude-haiku-4-5-20251001", "anthropic/claude-haiku-4-5"),
        ("claude-sonnet-4.6", "anthropic/claude-sonnet-4-6"),
        ("anthropic/claude-4.0-sonnet", "anthropic/claude-sonnet-4-0"),
        ("xai/grok-4.1-fast", "x-ai/grok-4-1-fast"),
        ("gemini/gemini-3-pro", "google/gemini-3-pro-preview"),
        (" gemini-2.5-flash ", "google/gemini-2.5-flash"),
    ],
)
def test_other_spellings_find_the_model(spelling, name):
    assert find_model(spelling).name == name


def test_members_of_other_enums_find_the_model_by_value():
    class Theirs(Enum):
        GPT_5 = "openai/gpt-5"

    assert find_model(Theirs.GPT_5).name == "openai/gpt-5"
    assert wire_name(Theirs.GPT_5) == "gpt-5"


@pytest.mark.parametrize("name", ["", "gpt", "openai/", "anthropic/gpt-5", None, 5, object()])
def test_unknown_names_find_nothing(name):
    assert find_model(name) is None


def test_what_is_close_to_an_unknown_name_is_known():
    assert "openai/gpt-5" in nearest_models("openai/gpt5")
    assert nearest_models("gpt-5.6")[0].startswith("openai/gpt-5")
    assert nearest_models("claude-opus-5")[0].startswith("anthropic/claude-opus-4")
    assert "openai/gpt-4o" not in nearest_models("openai/gpt-4o")
    assert nearest_models("zzz") == []


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("openai/gpt-5", "gpt-5"),
        ("gpt-5", "gpt-5"),
        ("x-ai/grok-4", "grok-4"),
        ("openai/gpt-99-of-tomorrow", "gpt-99-of-tomorrow"),
        ("openai/gpt-4.1-2025-04-14", "gpt-4.1-2025-04-14"),
        ("bytedance/seed-1.6", "seed-1.6"),
        ("nous/hermes-4-70b", "hermes-4-70b"),
        ("zai/glm-99-of-tomorrow", "glm-99-of-tomorrow"),
        ("somebody/finetuned-llama", "somebody/finetuned-llama"),
        ("XAI/Grok-4-Fast", "grok-4-fast"),
        ("claude-sonnet-4.6", "claude-sonnet-4-6"),
        ("x-ai/grok-4-0709", "grok-4-0709"),
        ("claude-3.5-haiku", "claude-3.5-haiku"),
    ],
)
def test_the_wire_name_is_the_part_after_the_provider_as_gateways_spell_it(name, wire):
    assert wire_name(name) == wire


def test_every_name_of_the_sdks_goes_out_as_they_send_it():
    assert [wire_name(name) for name in TEE_LLM] == [name.value.partition("/")[2] for name in TEE_LLM]


@pytest.mark.parametrize("name", ["", " ", None, 5])
def test_what_is_no_name_has_no_wire_name(name):
    with pytest.raises(UnknownModel, match="not the name of a model"):
        wire_name(name)


def test_all_models_of_the_newest_sdk_are_known_and_the_prices_of_the_gateway_count():
    newest = [info for info in catalog() if info.source == "sdk-1.1.4"]
    assert len(newest) == 48
    assert {info.name for info in newest} <= {member.value for member in TEE_LLM}
    assert all(wire_name(info.name) == info.name.partition("/")[2] for info in newest)
    assert not any(info.is_deprecated for info in newest)
    sold = [info for info in catalog() if info.price_source == "gateway-2026-04-28"]
    assert len(sold) == 21
    assert {info.price_as_of for info in sold} == {date(2026, 4, 28)}
    assert find_model("openai/gpt-4o").is_deprecated


def test_the_devnet_sells_every_model_of_the_catalog_at_its_published_price():
    prices = load_prices()
    for info in catalog():
        sold = prices.find(info.name)
        assert sold is not None, info.name
        if info.price_source is not None:
            published = (info.input_usd_per_mtok, info.output_usd_per_mtok)
            assert (sold.input_usd_per_mtok, sold.output_usd_per_mtok) == published, info.name


def test_costs_are_exact_and_the_worst_case_takes_all_tokens():
    gpt5 = find_model("gpt-5")
    assert gpt5.cost_usd(prompt_tokens=11, completion_tokens=20) == Decimal("0.00021375")
    assert gpt5.worst_case_cost_usd(prompt_tokens=0, max_tokens=100) == Decimal("0.001")
    assert gpt5.worst_case_cost_usd(prompt_tokens=0) == Decimal("0.04096")
    assert gpt5.worst_case_cost_usd(prompt_tokens=0, max_tokens=10**9) == Decimal("1.28")


def test_long_prompts_cost_the_long_price_for_the_whole_call():
    pro = find_model("gemini-3-pro")
    assert pro.cost_usd(prompt_tokens=200_000, completion_tokens=0) == Decimal("0.4")
    assert pro.cost_usd(prompt_tokens=200_001, completion_tokens=100) == Decimal("0.801804")


def test_a_cost_in_tokens_is_rounded_up_to_the_atomic_unit():
    assert usd_to_atomic(Decimal("0.3"), asset_usd=Decimal("0.1"), decimals=18) == 3 * 10**18
    assert usd_to_atomic(Decimal(1), asset_usd=Decimal(3), decimals=18) == 333333333333333334
    assert usd_to_atomic(Decimal(0), asset_usd=Decimal(3), decimals=18) == 0
    with pytest.raises(ValueError, match="cannot be right"):
        usd_to_atomic(Decimal(1), asset_usd=Decimal(0), decimals=18)
