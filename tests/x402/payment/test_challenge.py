from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.errors import ChallengeInvalid
from opengradient_x402.payment.challenge import Challenge, parse_challenge
from support.odd_entries import ODD_ENTRIES, PAYEE, upto

VECTORS = Path(__file__).parents[2] / "vectors"


def document(*accepts: Any, **changes: Any) -> dict[str, Any]:
    return {
        "x402Version": 2,
        "error": "Payment required",
        "resource": {"url": "https://gateway.example/v1/chat/completions"},
        "accepts": list(accepts) or [upto()],
        **changes,
    }


def encoded(challenge: Any) -> str:
    text = challenge if isinstance(challenge, str) else json.dumps(challenge)
    return base64.b64encode(text.encode()).decode()


def refused(challenge: Any) -> str:
    with pytest.raises(ChallengeInvalid) as caught:
        parse_challenge(encoded(challenge))
    assert "nothing was paid" in str(caught.value)
    return str(caught.value)


def test_the_challenge_of_a_real_gateway_is_understood():
    captured = json.loads((VECTORS / "gateway_responses.json").read_text())
    challenge = parse_challenge(captured["challenge_header"])
    (terms,) = challenge.terms
    assert (terms.scheme, terms.chain_id, terms.amount_atomic) == ("upto", 8453, 10**17)
    assert terms.pay_to == PAYEE
    assert terms.max_timeout_s == 300
    assert terms.raw == json.loads(base64.b64decode(captured["challenge_header"]))["accepts"][0]
    assert "erc20ApprovalGasSponsoring" in challenge.extensions


def test_unknown_keys_are_kept_verbatim():
    entry = upto(somethingNew={"a": [1, None, "é"]}, extra={"more": 1.5})
    assert parse_challenge(encoded(document(entry))).terms[0].raw == entry


def test_lower_case_addresses_are_accepted_and_checksummed():
    (terms,) = parse_challenge(encoded(document(upto(payTo=PAYEE.lower())))).terms
    assert terms.pay_to == PAYEE
    assert terms.raw["payTo"] == PAYEE.lower()


def test_the_transfer_method_has_the_default_of_its_scheme():
    assert (
        parse_challenge(encoded(document(upto(extra={"assetTransferMethod": None})))).terms[0].transfer_method
        == "permit2"
    )
    exact = upto(scheme="exact", extra={"assetTransferMethod": None, "facilitatorAddress": None})
    (terms,) = parse_challenge(encoded(document(exact))).terms
    assert (terms.transfer_method, terms.facilitator) == ("eip3009", None)


def test_other_schemes_and_chains_are_skipped_with_a_reason_when_another_entry_is_usable():
    challenge = parse_challenge(
        encoded(document({"scheme": "deferred"}, upto(), {"scheme": "exact", "network": "solana:mainnet"}))
    )
    assert len(challenge.terms) == 1
    assert [(skip.index, skip.reason) for skip in challenge.skipped] == [
        (0, "scheme 'deferred' is not supported"),
        (2, "network 'solana:mainnet' is not an EVM chain"),
    ]


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize(("entry", "reason"), ODD_ENTRIES.values(), ids=ODD_ENTRIES.keys())
def test_an_entry_that_cannot_be_paid_does_not_spoil_its_neighbour(entry, reason, is_first):
    challenge = parse_challenge(encoded(document(*([entry, upto()] if is_first else [upto(), entry]))))
    assert [terms.raw for terms in challenge.terms] == [upto()]
    (skipped,) = challenge.skipped
    assert skipped.index == (0 if is_first else 1)
    assert reason in skipped.reason


def test_a_challenge_with_nothing_usable_says_why_of_each_entry():
    message = refused(document(*(entry for entry, _ in ODD_ENTRIES.values())))
    for index, (_, reason) in enumerate(ODD_ENTRIES.values()):
        assert re.search(rf"accepts\[{index}\]: [^;]*{re.escape(reason)}", message), message


@pytest.mark.parametrize(
    "amount",
    [
        "٣",
        "-5",
        "0.5",
        "+1",
        "01",
        "1e18",
        "0x10",
        "",
        " 1",
        "1\n",
        "1_0",
        100,
        1.5,
        None,
        True,
        [],
        str(2**256),
        "9" * 40_000,
    ],
    ids=range(18),
)
def test_amounts_that_are_not_strict_ascii_decimals_are_refused(amount):
    assert "amount is" in refused(document(upto(amount=amount)))


def test_the_largest_uint256_is_an_amount():
    (terms,) = parse_challenge(encoded(document(upto(amount=str(2**256 - 1))))).terms
    assert terms.amount_atomic == 2**256 - 1


@pytest.mark.parametrize("version", [1, 3, "2", 2.0, True, None, [2], 2**300])
def test_versions_other_than_two_are_refused(version):
    message = refused(document(x402Version=version))
    assert "only version 2 is accepted" in message
    if version == 1 and version is not True:
        assert "cannot bind the facilitator" in message


@pytest.mark.parametrize(
    "entry",
    [
        upto(flow="upfront"),
        upto(extra={"paymentFlow": "Escrow"}),
        upto(escrow="0x1"),
        upto(extra={"deposit": True}),
        upto(mode="upfront"),
    ],
    ids=range(5),
)
def test_flows_that_take_the_money_first_are_refused(entry):
    assert "before the answer" in refused(document(entry))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payTo": "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1A"}, "checksum"),
        ({"payTo": "9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"}, "not an address"),
        ({"payTo": "0x" + "٣" * 40}, "not an address"),
        ({"asset": "native"}, "not an address"),
        ({"asset": None}, "not an address"),
        ({"network": "eip155:08453"}, "CAIP-2"),
        ({"network": "eip155:-1"}, "CAIP-2"),
        ({"network": None}, "CAIP-2"),
        ({"maxTimeoutSeconds": 0}, "positive number of seconds"),
        ({"maxTimeoutSeconds": -1}, "positive number of seconds"),
        ({"maxTimeoutSeconds": "300"}, "positive number of seconds"),
        ({"maxTimeoutSeconds": 1.5}, "positive number of seconds"),
        ({"maxTimeoutSeconds": True}, "positive number of seconds"),
        ({"maxTimeoutSeconds": 10**30}, "positive number of seconds"),
        ({"extra": {"facilitatorAddress": None}}, "anybody could settle"),
        ({"extra": {"facilitatorAddress": "0x1"}}, "not an address"),
        ({"extra": {"assetTransferMethod": "eip3009"}}, "cannot pay by upto"),
        ({"extra": {"assetTransferMethod": ["permit2"]}}, "cannot pay by upto"),
        ({"extra": {"name": 5}}, "not a short text"),
        ({"extra": {"name": "x" * 5000}}, "not a short text"),
        ({"extra": {"name": "\ud800"}}, "not a short text"),
    ],
)
def test_terms_with_a_bad_field_are_refused_with_the_field(changes, reason):
    assert reason in refused(document(upto(**changes)))


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        ([], "not an object"),
        ("null", "not an object"),
        ({"x402Version": 2}, "resource"),
        (document(resource={"url": ""}), "resource.url"),
        (document(resource="https://x"), "resource"),
        (document(accepts=[]), "at least one entry"),
        (document(accepts={}), "at least one entry"),
        (document(accepts=["upto"]), "not an object"),
        (document(accepts=[upto()] * 65), "limit 64"),
        (document(extensions=["x"]), "extensions"),
        ('{"x402Version": 2, "x402Version": 1}', "valid JSON"),
        ('{"x402Version": NaN}', "valid JSON"),
        ('{"x402Version": 1e999}', "valid JSON"),
        ("{", "valid JSON"),
        ('{"x402Version": 2' + "0" * 5000 + "}", "valid JSON"),
        ("[" * 20_000, "valid JSON"),
        ('{"a":' * 40 + "1" + "}" * 40, "deeper than 32"),
        (json.dumps({"a": [1] * 5000}), "more than 4096"),
    ],
    ids=range(18),
)
def test_documents_out_of_shape_are_refused(challenge, reason):
    assert reason in refused(challenge)


@pytest.mark.parametrize("header", ["", "not base64!", "e30=\r\n", "é", "e30", "====", "/w=="])
def test_headers_that_are_not_base64_json_are_refused(header):
    with pytest.raises(ChallengeInvalid):
        parse_challenge(header)


def test_deep_nesting_is_refused_also_where_another_package_raised_the_recursion_limit():
    # py-evm sets 100,000 for the whole process; the JSON parser's own recursion would then overflow a stack.
    program = (
        "import base64, sys, threading; sys.setrecursionlimit(100_000); threading.stack_size(256 * 1024)\n"
        "from opengradient_x402.payment.challenge import parse_challenge\n"
        "from opengradient_x402.errors import ChallengeInvalid\n"
        "def refused():\n"
        "    try: parse_challenge(base64.b64encode(b'[' * 48_000).decode())\n"
        "    except ChallengeInvalid: print('refused')\n"
        "thread = threading.Thread(target=refused); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


def test_a_huge_header_is_refused_without_being_decoded():
    with pytest.raises(ChallengeInvalid, match="limit 65536"):
        parse_challenge("A" * 200_000_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def only_refuses(header: str) -> None:
    try:
        challenge = parse_challenge(header)
    except ChallengeInvalid:
        return
    assert isinstance(challenge, Challenge)
    assert challenge.terms


@given(st.text())
def test_any_header_text_is_parsed_or_refused(header):
    only_refuses(header)


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(content):
    only_refuses(base64.b64encode(content).decode())


@given(json_values)
def test_any_json_is_parsed_or_refused(value):
    only_refuses(encoded(value))


@given(st.sampled_from([*upto(), "flow"]), json_values)
def test_any_value_in_any_field_of_the_terms_is_parsed_or_refused(key, value):
    only_refuses(encoded(document({**upto(), key: value})))


@given(st.sampled_from(["facilitatorAddress", "assetTransferMethod", "name", "version", "mode"]), json_values)
def test_any_value_in_any_extra_is_parsed_or_refused(key, value):
    only_refuses(encoded(document(upto(extra={key: value}))))


@given(st.sampled_from(["x402Version", "resource", "accepts", "extensions", "error"]), json_values)
def test_any_value_in_any_field_of_the_challenge_is_parsed_or_refused(key, value):
    only_refuses(encoded({**document(), key: value}))
