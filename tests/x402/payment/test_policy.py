from __future__ import annotations

import base64
import json
import logging
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.errors import ConfigurationError, InsecureEndpoint, PolicyRefused
from opengradient_x402.networks import PRESETS
from opengradient_x402.payment.challenge import Challenge, parse_challenge
from opengradient_x402.payment.policy import SpendPolicy

BASE = PRESETS["base"]
PAYEE = next(iter(BASE.payees))
FACILITATOR = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
STRANGER = "0x4A146cf0D98a98e1cf999661F967BdaFdf0E7337"
ORIGIN = "https://llm.opengradient.ai"


def entry(**changes: Any) -> dict[str, Any]:
    extra = {
        "name": "OpenGradient",
        "version": "1",
        "assetTransferMethod": "permit2",
        "facilitatorAddress": FACILITATOR,
        **changes.pop("extra", {}),
    }
    return {
        "scheme": "upto",
        "network": "eip155:8453",
        "asset": BASE.asset.address,
        "amount": str(10**17),
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "extra": extra,
        **changes,
    }


def asked(*accepts: dict[str, Any], url: str = f"{ORIGIN}/v1/chat/completions") -> Challenge:
    document = {"x402Version": 2, "resource": {"url": url}, "accepts": list(accepts)}
    return parse_challenge(base64.b64encode(json.dumps(document).encode()).decode())


def refusal(challenge: Challenge, policy: SpendPolicy | None = None, **changes: Any) -> str:
    with pytest.raises(PolicyRefused) as caught:
        (policy or SpendPolicy()).choose(challenge, **{"network": BASE, "origin": ORIGIN, **changes})
    assert "nothing was signed" in str(caught.value)
    return str(caught.value)


def test_ordinary_terms_of_the_networks_own_payee_are_accepted():
    terms = SpendPolicy().choose(asked(entry()), network=BASE, origin=ORIGIN)
    assert (terms.amount_atomic, terms.pay_to) == (10**17, PAYEE)


def test_upto_comes_before_exact_and_a_smaller_cap_before_a_larger_one():
    challenge = asked(entry(scheme="exact", amount="1"), entry(amount="300"), entry(amount="200"), entry(amount="250"))
    terms = SpendPolicy().choose(challenge, network=BASE, origin=ORIGIN)
    assert (terms.scheme, terms.amount_atomic) == ("upto", 200)


def test_exact_is_taken_when_upto_is_not_acceptable():
    challenge = asked(entry(payTo=STRANGER), entry(scheme="exact"))
    assert SpendPolicy().choose(challenge, network=BASE, origin=ORIGIN).scheme == "exact"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"network": "eip155:1"}, "pays on eip155:8453 (base) only"),
        ({"asset": STRANGER}, f"wants token {STRANGER}"),
        ({"payTo": STRANGER}, "add it to the policy's `payees`"),
        ({"amount": "0"}, "amount is 0"),
        ({"maxTimeoutSeconds": 3601}, "would live 3601 s; the limit is 3600 s"),
        ({"maxTimeoutSeconds": 10**9}, "would live 1000000000 s"),
        (
            {"amount": str(5 * 10**18 + 1)},
            "Call would authorize 5.000000000000000001 OPG; the limit is 5 OPG. Raise",
        ),
        ({"amount": str(2**256 - 1)}, "Raise `max_per_authorization`"),
        (
            {"scheme": "exact", "extra": {"assetTransferMethod": "eip3009", "version": "2"}},
            "the signature would be invalid",
        ),
    ],
)
def test_terms_outside_the_policy_are_refused_with_the_remedy(changes, reason):
    assert reason in refusal(asked(entry(**changes)))


def test_every_refused_entry_is_reported():
    message = refusal(asked(entry(payTo=STRANGER), entry(scheme="exact", network="eip155:1"), {"scheme": "deferred"}))
    assert "accepts[2]: scheme 'deferred' is not supported" in message
    assert "payees" in message
    assert "exact on eip155:1" in message


def test_the_users_own_payees_extend_the_networks():
    policy = SpendPolicy(payees={STRANGER.lower()})
    assert policy.choose(asked(entry(payTo=STRANGER)), network=BASE, origin=ORIGIN).pay_to == STRANGER
    assert policy.choose(asked(entry()), network=BASE, origin=ORIGIN).pay_to == PAYEE


def test_an_unpublished_facilitator_is_pinned_at_first_use():
    first = SpendPolicy().choose(asked(entry()), network=BASE, origin=ORIGIN, pinned_facilitator=None)
    again = SpendPolicy().choose(asked(entry()), network=BASE, origin=ORIGIN, pinned_facilitator=FACILITATOR.lower())
    assert first.facilitator == again.facilitator == FACILITATOR
    message = refusal(asked(entry()), pinned_facilitator=STRANGER)
    assert f"changed from {STRANGER} (pinned at first use) to {FACILITATOR}" in message


def test_a_published_facilitator_is_required_whatever_was_pinned():
    network = replace(BASE, facilitators=frozenset({STRANGER}))
    assert "not allowed on base" in refusal(asked(entry()), network=network, pinned_facilitator=FACILITATOR)
    policy = SpendPolicy(facilitators=[FACILITATOR])
    assert policy.choose(asked(entry()), network=network, origin=ORIGIN).facilitator == FACILITATOR


def test_the_facilitator_of_an_exact_payment_is_not_signed_and_so_not_checked():
    challenge = asked(entry(scheme="exact"))
    assert SpendPolicy().choose(challenge, network=BASE, origin=ORIGIN, pinned_facilitator=STRANGER).scheme == "exact"


def test_a_price_may_rise_by_the_limit_and_no_further():
    policy = SpendPolicy(max_price_increase_percent=50)
    accepted = policy.choose(asked(entry(amount="150")), network=BASE, origin=ORIGIN, last_amount_atomic=100)
    assert accepted.amount_atomic == 150
    message = refusal(asked(entry(amount="151")), policy, last_amount_atomic=100)
    assert "an increase of 50 %" in message
    assert "`max_price_increase_percent`" in message


def test_the_day_limit_bounds_a_single_authorization_too():
    assert "Raise `max_per_day`" in refusal(asked(entry()), SpendPolicy(max_per_day="0.05"))


def test_the_call_limit_bounds_exact_payments_and_the_worst_case_of_calls():
    policy = SpendPolicy(max_per_call="0.05")
    assert "Raise `max_per_call`" in refusal(asked(entry(scheme="exact")), policy)
    assert policy.choose(asked(entry()), network=BASE, origin=ORIGIN).scheme == "upto"
    policy.check_call(5 * 10**16, asset=BASE.asset, model="openai/gpt-5")
    with pytest.raises(PolicyRefused, match=r"gpt-5 could cost 0\.06 OPG; the limit is 0\.05 OPG"):
        policy.check_call(6 * 10**16, asset=BASE.asset, model="openai/gpt-5")
    SpendPolicy().check_call(2**256, asset=BASE.asset, model="openai/gpt-5")


def test_limits_are_text_in_tokens_or_ints_in_atomic_units():
    policy = SpendPolicy(max_per_authorization="0.5", max_per_day=7)
    assert policy.per_authorization_atomic(BASE.asset) == 5 * 10**17
    assert policy.per_day_atomic(BASE.asset) == 7
    assert policy.per_call_atomic(BASE.asset) is None
    assert SpendPolicy().per_authorization_atomic(BASE.asset) == 5 * 10**18
    assert SpendPolicy().per_day_atomic(BASE.asset) == 20 * 10**18


@pytest.mark.parametrize(
    "limits",
    [
        {"max_per_authorization": 0.5},
        {"max_per_authorization": None},
        {"max_per_authorization": True},
        {"max_per_day": "lots"},
        {"max_per_day": None},
        {"max_per_call": -1},
        {"max_per_call": "-1"},
        {"max_deadline_s": "600"},
        {"max_deadline_s": -1},
        {"max_price_increase_percent": 0.5},
        {"payees": ["0x1"]},
        {"facilitators": "somebody"},
        {"approval": True, "approve_above": "1"},
        {"approval_timeout_s": None},
        {"approval_timeout_s": 0},
        {"approval_timeout_s": float("nan")},
        {"approval_timeout_s": float("inf")},
        {"approval_timeout_s": "300"},
        {"approval_timeout_s": True},
    ],
)
def test_limits_that_cannot_be_meant_are_refused_at_once(limits):
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        SpendPolicy(**limits)


def test_a_limit_finer_than_the_token_is_refused_where_the_token_is_known():
    policy = SpendPolicy(max_per_day="0.0000000000000000001")
    with pytest.raises(ConfigurationError, match="more than the 18 decimals"):
        policy.per_day_atomic(BASE.asset)


def test_a_resource_at_another_host_is_logged_and_no_reason_to_refuse(caplog):
    with caplog.at_level(logging.INFO, logger="opengradient_x402.payment.policy"):
        SpendPolicy().choose(asked(entry(), url="http://10.0.0.7:8000/v1"), network=BASE, origin=ORIGIN)
    assert "llm.opengradient.ai names a resource at another host (10.0.0.7)" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "https://llm.opengradient.ai",
        "http://127.0.0.1:8080/v1",
        "http://localhost:1",
        "http://[::1]:9",
        "https://3.15.214.21",
    ],
)
def test_https_and_loopback_are_fit_for_money(url):
    SpendPolicy().check_endpoint(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://llm.opengradient.ai", "plain http"),
        ("http://192.168.1.5", "plain http"),
        ("http://127.0.0.1.nip.io", "plain http"),
        ("http://localhost@evil.example", "plain http"),
        ("https://169.254.169.254/latest", "private, link-local"),
        ("https://10.1.2.3", "private, link-local"),
        ("https://[fd00::1]", "private, link-local"),
        ("https://0.0.0.0", "private, link-local"),
        ("ftp://llm.opengradient.ai", "not an http"),
        ("llm.opengradient.ai", "not an http"),
        ("https://", "not an http"),
    ],
)
def test_other_endpoints_are_refused(url, reason):
    with pytest.raises(InsecureEndpoint, match=reason):
        SpendPolicy().check_endpoint(url)


def test_a_password_in_an_endpoint_is_not_repeated_in_the_error():
    with pytest.raises(InsecureEndpoint) as caught:
        SpendPolicy().check_endpoint("http://user:hunter2@gateway.example")
    assert "hunter2" not in str(caught.value)


def test_private_endpoints_can_be_allowed_by_name():
    SpendPolicy(allow_private_endpoints=True).check_endpoint("https://10.1.2.3")


def test_a_clock_that_disagrees_with_the_gateway_signs_nothing():
    policy = SpendPolicy()
    policy.check_clock(now_s=1_000_060, server_now_s=1_000_000)
    with pytest.raises(PolicyRefused, match="61 s ahead of"):
        policy.check_clock(now_s=1_000_061, server_now_s=1_000_000)
    with pytest.raises(PolicyRefused, match="900 s behind"):
        policy.check_clock(now_s=1_000_000, server_now_s=1_000_900)


@given(
    amount=st.integers(0, 2**256 - 1),
    timeout=st.integers(1, 2**32),
    payee=st.sampled_from([PAYEE, STRANGER]),
    last=st.none() | st.integers(0, 2**256 - 1),
)
def test_nothing_outside_the_limits_is_ever_chosen(amount, timeout, payee, last):
    challenge = asked(entry(amount=str(amount), maxTimeoutSeconds=timeout, payTo=payee))
    try:
        terms = SpendPolicy().choose(challenge, network=BASE, origin=ORIGIN, last_amount_atomic=last)
    except PolicyRefused:
        return
    assert 0 < terms.amount_atomic <= 5 * 10**18
    assert terms.max_timeout_s <= 3600
    assert terms.pay_to == PAYEE
    assert last is None or terms.amount_atomic <= 2 * last


def test_a_model_has_a_cap_of_its_own_however_its_name_is_spelled():
    policy = SpendPolicy(max_per_call="1", max_per_model={"openai/gpt-5": "0.1"})
    policy.check_call(10**17, asset=BASE.asset, model="gpt-5")
    with pytest.raises(PolicyRefused, match=r"limit is 0\.1 OPG.*Raise `max_per_model`"):
        policy.check_call(10**17 + 1, asset=BASE.asset, model="gpt-5")
    policy.check_call(10**18, asset=BASE.asset, model="openai/gpt-5-mini")
    assert hash(policy) == hash(SpendPolicy(max_per_call="1", max_per_model=[("openai/gpt-5", "0.1")]))


@pytest.mark.parametrize("quoted", ["0.41", "0.09"])
def test_a_token_price_that_jumps_is_refused_in_both_directions(quoted):
    policy = SpendPolicy()
    policy.check_token_price(Decimal("0.4"), Decimal("0.2"), origin="https://gateway.example")
    with pytest.raises(PolicyRefused, match=r"token price.*Nothing was signed"):
        policy.check_token_price(Decimal(quoted), Decimal("0.2"), origin="https://gateway.example")


def test_a_limit_for_a_misspelt_model_is_not_silently_none():
    with pytest.warns(UserWarning, match="Did you mean 'openai/gpt-5'"):
        SpendPolicy(max_per_model={"opneai/gpt5": "0.1"})
    for pattern in ("*", "openai/*", " "):
        with pytest.raises(ConfigurationError, match="Name each model"):
            SpendPolicy(max_per_model={pattern: "0.1"})


def test_a_model_of_an_own_gateway_may_have_a_limit():
    assert SpendPolicy(max_per_model={"ollama/llama3": "0.1"}).max_per_model == (("ollama/llama3", "0.1"),)
