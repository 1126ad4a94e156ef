"""How a settlement is shared among its calls, above all among those whose price was never quoted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.ledger.disputes import split_settlement
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt

CALL = SettlementReceipt(
    call_id="call",
    status=ReceiptStatus.SERVED,
    created_at=0,
    outcome="ok",
    network="eip155:31402",
    scheme="upto",
    asset="0x",
    payer="0x",
    payee="0x",
    authorization_id="auth",
    nonce="1",
    deadline=0,
    authorized_atomic=10**17,
    endpoint="http://127.0.0.1",
    model="openai/gpt-5",
    settlement_mode="batch",
)


def quoted(cost_atomic: int) -> SettlementReceipt:
    return replace(CALL, cost_atomic=cost_atomic)


DROPPED = replace(CALL, outcome="abandoned")


def test_a_dropped_stream_gets_what_was_taken_beyond_the_quotes_of_the_others():
    assert split_settlement(1_000, [quoted(300), DROPPED, quoted(500)]) == [300, 200, 500]


def test_two_dropped_streams_share_the_rest():
    assert split_settlement(1_001, [quoted(300), DROPPED, DROPPED]) == [300, 351, 350]


def test_a_dropped_stream_that_cost_nothing_gets_nothing():
    assert split_settlement(800, [quoted(300), DROPPED, quoted(500)]) == [300, 0, 500]


def test_a_settlement_below_the_quotes_is_split_in_proportion_to_them():
    assert split_settlement(400, [quoted(300), DROPPED, quoted(500)]) == [150, 0, 250]


def used(model: str, prompt_tokens: int, completion_tokens: int) -> SettlementReceipt:
    return replace(CALL, model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def test_calls_without_quotes_share_by_usage_at_published_prices():
    cheap, dear = used("openai/gpt-5-mini", 1_000, 1_000), used("anthropic/claude-opus-4-6", 1_000, 1_000)
    assert split_settlement(32_250, [cheap, dear]) == [2_250, 30_000]


def test_tokens_of_a_model_without_a_published_price_count_as_the_others_do_on_average():
    known, unknown = used("openai/gpt-5", 100, 100), used("openai/gpt-5.5", 150, 50)
    assert split_settlement(1_000, [known, unknown, DROPPED]) == [500, 500, 0]
    assert split_settlement(1_000, [unknown, used("zai/glm-5.2", 500, 100)]) == [250, 750]


@given(
    settled=st.integers(0, 10**18),
    costs=st.lists(st.none() | st.integers(0, 10**17), min_size=1, max_size=8),
    outcome=st.sampled_from(["ok", "abandoned", "failed"]),
)
def test_shares_always_add_up_to_the_settlement(settled, costs, outcome):
    receipts = [replace(CALL, cost_atomic=cost, outcome="ok" if cost is not None else outcome) for cost in costs]
    shares = split_settlement(settled, receipts)
    assert sum(shares) == settled
    assert min(shares) >= 0


@pytest.mark.parametrize("count", [1, 3])
def test_calls_of_which_nothing_is_known_share_evenly(count):
    assert sum(split_settlement(7, [DROPPED] * count)) == 7
