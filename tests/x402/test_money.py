from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.money import MAX_UINT256, Asset, format_amount, parse_amount

OPG = Asset(
    address="0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
    symbol="OPG",
    decimals=18,
    name="OpenGradient",
    version="1",
)


@pytest.mark.parametrize(
    ("amount", "atomic"),
    [
        ("0", 0),
        ("1", 10**18),
        ("0.1", 10**17),
        ("0.10", 10**17),
        ("0.000000000000000001", 1),
        ("0.1000000000000000000000", 10**17),
        (5, 5 * 10**18),
        (Decimal("2.5"), 25 * 10**17),
        (Decimal("1E+2"), 100 * 10**18),
    ],
)
def test_amounts_become_exact_atomic_units(amount, atomic):
    assert parse_amount(amount, decimals=18) == atomic


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        ".5",
        "1.",
        "1e3",
        "1_000",
        " 1",
        "0x10",
        "٣",
        "1,5",
        "NaN",
        "Infinity",
        "0.0000000000000000001",
    ],
)
def test_text_that_is_not_a_plain_decimal_is_refused(text):
    with pytest.raises(ValueError, match=r"amount|decimals"):
        parse_amount(text, decimals=18)


def test_floats_are_refused_with_the_text_to_write_instead():
    with pytest.raises(TypeError, match=r'Write it as text: "0\.1"'):
        parse_amount(0.1, decimals=18)  # type: ignore[arg-type]


def test_booleans_are_not_amounts():
    with pytest.raises(TypeError, match="bool"):
        parse_amount(True, decimals=18)


def test_amounts_beyond_a_uint256_are_refused():
    assert parse_amount(str(MAX_UINT256), decimals=0) == MAX_UINT256
    with pytest.raises(ValueError, match="2\\^256"):
        parse_amount(str(MAX_UINT256 + 1), decimals=0)


def test_an_overlong_number_is_refused_without_being_converted():
    with pytest.raises(ValueError, match=r"\.\.\."):
        parse_amount("9" * 100_000, decimals=18)


def test_balance_changes_can_be_negative():
    assert format_amount(-1, decimals=2) == "-0.01"
    assert format_amount(-(10**18), decimals=18) == "-1"


def test_an_asset_writes_amounts_with_its_symbol():
    assert OPG.format(10**17) == "0.1 OPG"
    assert OPG.parse("0.1") == 10**17


@given(st.integers(min_value=0, max_value=MAX_UINT256), st.integers(min_value=0, max_value=36))
def test_every_amount_survives_writing_and_reading(atomic, decimals):
    assert parse_amount(format_amount(atomic, decimals=decimals), decimals=decimals) == atomic
