"""`verify_tee`: good proofs pass, every lie is caught, and `require` fails closed with the receipt."""

from __future__ import annotations

import logging

import pytest

from opengradient_devnet import faults
from opengradient_devnet.gateway.proofs.tee import CanonicalStyle
from opengradient_x402.errors import ProofRejected
from opengradient_x402.settlement_mode import SettlementMode
from support.payers import PROMPT, async_client_for, client_for, payments_for

TOOL = {
    "type": "function",
    "function": {
        "name": "token_price",
        "description": "Look up the price of a token",
        "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
    },
}
REQUESTS = {
    "plain": PROMPT,
    "temperature, stop and limit": {**PROMPT, "temperature": 0.3, "stop": ["rule"], "max_tokens": 7},
    "a limit of 0": {**PROMPT, "max_tokens": 0},
    "tools": {**PROMPT, "tools": [TOOL], "messages": [{"role": "user", "content": "Look up the price of token 'ETH'"}]},
    "parts and unicode": {
        **PROMPT,
        "messages": [
            {"role": "system", "content": "Be brief. é😀"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is é?", "cache_control": {"type": "ephemeral"}}],
            },
        ],
    },
    "web search": {**PROMPT, "web_search": True},
    "json": {
        **PROMPT,
        "messages": [{"role": "user", "content": "What is x402? Answer in JSON."}],
        "response_format": {"type": "json_object"},
    },
}
LIES = {
    "key": "signature does not fit",  # another key under the trusted name
    "signature": "signature does not fit",
    "timestamp": "signature does not fit",
    "stale": "another time",
    "request_hash": "another request",
    "output_hash": "another answer",
    "absent": "no enclave signature",
}


@pytest.fixture(scope="module", params=list(CanonicalStyle), ids=str)
def net(request, devnets):
    return devnets(canonical_style=request.param)


@pytest.mark.parametrize("request_body", REQUESTS.values(), ids=REQUESTS)
def test_good_proofs_are_accepted_in_both_canonical_styles_with_and_without_streaming(payments, request_body):
    with client_for(payments, verify_tee="require") as client:
        assert client.chat(request_body).receipt.tee_verified == "verified (key from the gateway)"
        stream = client.stream(request_body)
        list(stream)
        assert stream.completion.receipt.tee_verified == "verified (key from the gateway)"


@pytest.mark.parametrize("name", ["plain", "web search", "a limit of 0", "tools"])
def test_good_proofs_of_the_gateway_of_april_are_accepted(devnets, tmp_path, name):
    april = devnets(behaves_like="gateway-2026-04")
    account = april.account(opg="10", approved=True)
    with (
        payments_for(april, account, tmp_path / "april.sqlite") as payments,
        client_for(payments, verify_tee="require") as client,
    ):
        for mode in SettlementMode:
            verified = [client.chat(REQUESTS[name], settlement_mode=mode).receipt]
            stream = client.stream(REQUESTS[name], settlement_mode=mode)
            list(stream)
            verified.append(stream.receipt)
            assert [receipt.tee_verified for receipt in verified] == ["verified (key from the gateway)"] * 2, mode


@pytest.mark.parametrize("lie", LIES)
def test_require_withholds_the_answer_and_hands_over_the_receipt(net, payments, lie):
    with client_for(payments, verify_tee="require") as client:
        client.chat(PROMPT)
        for ask in (lambda: client.chat(PROMPT), lambda: list(client.stream(PROMPT))):
            net.faults.inject(faults.ForgeProof(part=lie))
            heard = []
            with pytest.raises(ProofRejected, match=LIES[lie]) as caught:
                ask()
            assert "answers this by rule" not in str(caught.value)
            heard.append(caught.value.receipt)
            (receipt,) = heard
            assert receipt.outcome == "failed"
            assert not receipt.tee_verified.startswith("verified")


def test_warn_passes_the_answer_on_and_marks_the_receipt(net, payments, caplog):
    with client_for(payments, verify_tee="warn") as client:
        net.faults.inject(faults.ForgeProof(part="output_hash"))
        with caplog.at_level(logging.WARNING):
            completion = client.chat(PROMPT)
    assert completion.content
    assert completion.receipt.tee_verified == "other_output (key from the gateway)"
    assert "another answer" in caplog.text


async def test_require_works_async(net, payments):
    client = async_client_for(payments, verify_tee="require")
    assert (await client.chat(PROMPT)).content
    net.faults.inject(faults.ForgeProof(part="request_hash"))
    with pytest.raises(ProofRejected):
        await client.chat(PROMPT)
    await client.aclose()
