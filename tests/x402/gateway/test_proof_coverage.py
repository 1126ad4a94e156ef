"""A verdict never covers less than what is handed out, and a proof counts for one call only."""

from __future__ import annotations

import json

import pytest

from opengradient_devnet.faults import AddUnsigned, ForgeProof, RawEvent
from opengradient_devnet.gateway.proofs.tee import CanonicalStyle
from opengradient_x402.completions import parse_completion
from opengradient_x402.errors import ConfigurationError, ProofRejected
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.gateway.enclave_keys import ProofCheck
from opengradient_x402.proofs.attestation import VerifyTee, covered_only, uncovered_parts
from support.payers import PROMPT, async_client_for, client_for, payments_for

CALL = {"id": "c1", "type": "function", "function": {"name": "transfer", "arguments": '{"to": "mallory"}'}}
VERIFIED = "verified (key from the gateway)"
TOOL = {"type": "function", "function": {"name": "token_price", "description": "Look up the price of a token"}}
ASKS_FOR_A_TOOL = {
    **PROMPT,
    "tools": [TOOL | {"function": TOOL["function"] | {"parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "required",
}


def unsigned_event(**delta):
    return RawEvent(text=f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n")


@pytest.mark.parametrize("mode", ["require", "require-before"])
def test_tool_calls_beside_a_signed_text_are_refused(net, payments, mode):
    with client_for(payments, verify_tee=mode) as client:
        net.faults.inject(AddUnsigned(message={"tool_calls": [CALL]}))
        with pytest.raises(ProofRejected, match="tool calls beside it") as caught:
            client.chat(PROMPT)
        assert caught.value.receipt.tee_verified == "uncovered_calls (key from the gateway)"
        net.faults.inject(unsigned_event(tool_calls=[CALL | {"index": 0}]))
        with pytest.raises(ProofRejected, match="tool calls beside it"):
            list(client.stream(PROMPT))


UNSIGNED = {
    "reasoning": ({"reasoning_content": "made up"}, "answer.reasoning"),
    "refusal": ({"refusal": "made up"}, "answer.refusal"),
    "images": ({"images": [{"image_url": {"url": "https://relay.example/x.png"}}]}, "answer.images"),
    "annotations": ({"annotations": [{"type": "url_citation"}]}, "answer.annotations"),
}


@pytest.mark.parametrize("part", UNSIGNED)
def test_parts_that_no_signature_covers_are_named_on_the_receipt(net, payments, part):
    message, named = UNSIGNED[part]
    with client_for(payments, verify_tee="require") as client:
        net.faults.inject(AddUnsigned(message=message))
        receipt = client.chat(PROMPT).receipt
        assert (receipt.tee_verified, receipt.tee_uncovered) == (VERIFIED, named)
        assert receipt.to_json()["tee_uncovered"] == named
        assert client.chat(PROMPT | {"messages": [{"role": "user", "content": "Again"}]}).receipt.tee_uncovered is None


@pytest.mark.parametrize("part", UNSIGNED)
def test_the_strict_mode_leaves_them_out_and_names_them(net, payments, part):
    message, named = UNSIGNED[part]
    with client_for(payments, verify_tee="require-before") as client:
        net.faults.inject(AddUnsigned(message=message))
        completion = client.chat(PROMPT)
    assert completion.receipt.tee_uncovered == named
    assert completion.content
    assert (completion.reasoning, completion.refusal, completion.images) == ("", "", ())
    assert completion.message_extras == {}


def test_what_is_said_beside_a_message_is_not_signed_either():
    choice = {"index": 0, "message": {"content": "ok"}, "finish_reason": "stop", "native_finish_reason": "end_turn"}
    completion = parse_completion({"choices": [choice]})
    assert uncovered_parts(completion, PROMPT) == ("answer.native_finish_reason",)
    assert covered_only(completion).choice_extras == {}


def test_text_beside_signed_tool_calls_is_named_or_left_out(net, payments):
    message = {"content": "The transfer is approved by compliance."}
    with (
        client_for(payments, verify_tee="require") as named,
        client_for(payments, verify_tee="require-before") as strict,
    ):
        net.faults.inject(AddUnsigned(message=message))
        completion = named.chat(ASKS_FOR_A_TOOL)
        assert completion.tool_calls
        assert completion.receipt.tee_uncovered == "answer.text, request.tool_choice"
        net.faults.inject(AddUnsigned(message=message))
        completion = strict.chat(ASKS_FOR_A_TOOL | {"temperature": 0.5})
        assert (bool(completion.tool_calls), completion.content) == (True, "")


@pytest.mark.filterwarnings("ignore::opengradient_x402.gateway.request.GatewayLimitation")
def test_request_fields_that_are_not_hashed_are_named(payments):
    with client_for(payments, verify_tee="require") as client:
        receipt = client.chat(PROMPT | {"top_p": 0.5, "seed": 7}).receipt
    assert receipt.tee_uncovered == "request.top_p, request.seed"


@pytest.mark.parametrize(
    ("style", "named"),
    [(CanonicalStyle.STRINGIFIED, None), (CanonicalStyle.ATTACHMENTS_STRIPPED, "request.attachments")],
)
def test_attachments_are_named_where_the_newer_form_leaves_them_out(devnets, tmp_path, style, named):
    net = devnets(canonical_style=style)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    request = PROMPT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]}
    with (
        payments_for(net, net.account(approved=True), tmp_path / "a.sqlite") as payments,
        client_for(payments, verify_tee="require") as client,
    ):
        receipt = client.chat(request).receipt
    assert (receipt.tee_verified, receipt.tee_uncovered) == (VERIFIED, named)


# -- streams


def test_a_held_back_stream_shows_nothing_before_it_is_proven(net, payments):
    with client_for(payments, verify_tee="require-before") as client:
        net.faults.inject(ForgeProof(part="signature"))
        shown = []
        with pytest.raises(ProofRejected):
            shown.extend(client.stream(PROMPT))
        assert shown == []
        net.faults.inject(unsigned_event(reasoning_content="made up"))
        with client.stream(PROMPT | {"temperature": 0.5}) as stream:
            deltas = list(stream)
    assert "".join(delta.content for delta in deltas) == stream.completion.content != ""
    assert not any(delta.reasoning for delta in deltas)
    assert stream.completion.reasoning == ""
    assert stream.receipt.tee_uncovered == "answer.reasoning"


async def test_a_held_back_stream_is_proven_before_it_is_shown_async(net, payments):
    client = async_client_for(payments, verify_tee="require-before")
    net.faults.inject(ForgeProof(part="output_hash"))
    shown = []
    stream = await client.stream(PROMPT)
    with pytest.raises(ProofRejected):
        shown.append(await anext(stream))
    assert shown == []
    stream = await client.stream(PROMPT | {"temperature": 0.5})
    text = "".join([delta.content async for delta in stream])
    assert text == stream.completion.content != ""
    assert stream.receipt.tee_verified == VERIFIED
    await client.aclose()


def test_a_stream_under_require_is_shown_and_ends_with_the_error(net, payments):
    with client_for(payments, verify_tee="require") as client:
        net.faults.inject(ForgeProof(part="signature"))
        shown = []
        with pytest.raises(ProofRejected):
            shown.extend(delta.content for delta in client.stream(PROMPT))
        assert "".join(shown)


# -- one proof, one call


def test_the_proof_of_an_earlier_call_is_refused_for_the_same_question(net, payments):
    with client_for(payments, verify_tee="require") as client:
        for ask in (lambda: client.chat(PROMPT), lambda: list(client.stream(PROMPT))):
            assert client.chat(PROMPT).receipt.tee_verified == VERIFIED
            net.faults.inject(ForgeProof(part="replayed"))
            with pytest.raises(ProofRejected, match="with another call before") as caught:
                ask()
            assert caught.value.receipt.tee_verified == "replayed (key from the gateway)"


@pytest.mark.parametrize("streams", [False, True])
def test_the_ledger_remembers_proofs_for_the_next_process(net, account, tmp_path, streams):
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        first = client.chat(PROMPT).receipt
    with (
        payments_for(net, account, tmp_path / "l.sqlite") as payments,
        client_for(payments, verify_tee="require") as client,
    ):
        net.faults.inject(ForgeProof(part="replayed"))
        with pytest.raises(ProofRejected, match="with another call before"):
            list(client.stream(PROMPT)) if streams else client.chat(PROMPT)
        payments.ledger.flush()
        receipts = {receipt.call_id: receipt for receipt in payments.ledger.receipts().result()}
    assert receipts.pop(first.call_id).outcome == "ok"
    (second,) = receipts.values()
    assert (second.outcome, second.tee_verified) == ("failed", "replayed (key from the gateway)")


async def test_the_ledger_remembers_proofs_for_async_callers_too(net, account, tmp_path):
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments:
        client = async_client_for(payments, verify_tee="require")
        net.faults.inject(ForgeProof(part="replayed"))
        with pytest.raises(ProofRejected, match="with another call before"):
            await client.chat(PROMPT)
        await client.aclose()


def test_two_calls_with_the_same_words_have_two_proofs(payments: object, client: GatewayClient):
    assert client.chat(PROMPT).receipt.proof_id != client.chat(PROMPT).receipt.proof_id


def test_a_request_that_no_proof_could_be_checked_for_is_not_taken():
    check = ProofCheck(mode=VerifyTee.REQUIRE, public_key_der=None, key_source="none", on_wrong_key=lambda: None)
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        check.take({"messages": ["What is x402?"]})
