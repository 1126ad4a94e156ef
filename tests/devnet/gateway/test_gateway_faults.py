"""The faults of the gateway: each does what it says, as often as it says, and no more."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest

from opengradient_devnet import Devnet, Faults
from opengradient_devnet.contracts import contract
from opengradient_devnet.faults import (
    FAULT_KINDS,
    AlterChallenge,
    AlterTerms,
    AnswerStatus,
    EmptyStream,
    ErrorEvent,
    FailSettlement,
    FaultUnknown,
    ForgeProof,
    ForgeSessionId,
    GarbleBody,
    HangUp,
    HugeChallenge,
    KillSession,
    NeverSettle,
    OmitDone,
    OmitUsage,
    RawChallenge,
    RawEvent,
    Redirect,
    RefusePayment,
    SettleAtCap,
    SettleForSomebodyElse,
    SkewClock,
    SlowDrip,
    StreamStyle,
    TruncateStream,
    WrongTransaction,
    parse_fault,
)
from opengradient_devnet.tool_call_styles import ToolCallStyle
from support.answers import answer_of, events_of, proof_of, verify_proof
from support.payer import Payer, chat_body, decode

pytestmark = pytest.mark.devnet(fault_route=True)

ELSEWHERE = "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"
STREAM = chat_body(stream=True)
TOOL_BODY = chat_body(
    "What is the price of ETH",
    stream=True,
    tools=[
        {
            "type": "function",
            "function": {
                "name": "get_token_price",
                "description": "Get the current USD price of a cryptocurrency.",
                "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}},
            },
        }
    ],
)


@pytest.fixture
def payer(net):
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        yield payer


# --- the mechanism ----------------------------------------------------------------------------------------


def test_fault_strikes_as_often_as_it_was_told_after_the_occasions_it_skips():
    faults = Faults()
    drip = SlowDrip(pace_s=1)
    faults.inject(drip, times=2, skip=1)

    assert [faults.take(SlowDrip) for _ in range(4)] == [None, drip, drip, None]
    assert faults.struck == [drip, drip]


def test_fault_without_limit_strikes_until_it_is_cleared():
    faults = Faults()
    faults.inject(KillSession(), times=None)

    assert all(faults.take(KillSession) for _ in range(5))
    faults.clear()
    assert faults.take(KillSession) is None


def test_only_a_fault_that_meets_the_criteria_is_taken():
    faults = Faults()
    faults.inject(Redirect(location="http://x", when="paid"))

    assert faults.take(Redirect, when="unpaid") is None
    assert faults.take(Redirect, when="paid") is not None


def test_faults_are_named_in_json_by_their_members():
    assert parse_fault("slow_drip", {"pace_s": 0.1}) == SlowDrip(pace_s=0.1)
    assert parse_fault("stream_style", {"tool_calls": "whole"}) == StreamStyle(tool_calls=ToolCallStyle.WHOLE)
    assert parse_fault("kill_session", {}) == KillSession()
    for name, members in [("nonsense", {}), ("slow_drip", {"pace": 1}), ("slow_drip", {})]:
        with pytest.raises(FaultUnknown, match=name):
            parse_fault(name, members)


def test_control_route_arms_lists_and_clears(net, payer):
    wish = {"fault": "answer_status", "members": {"status": 503}, "times": None}
    payer.http.headers["x-fault-token"] = net.fault_token
    assert payer.http.post("/faults", json=wish).status_code == 200
    assert [payer.chat().status_code for _ in range(2)] == [503, 503]
    assert payer.http.get("/faults").json()["kinds"] == sorted(FAULT_KINDS)
    assert payer.http.post("/faults", json={"fault": "nonsense"}).status_code == 400

    payer.http.request("DELETE", "/faults")
    assert payer.chat().status_code == 200


def test_control_route_does_not_exist_unless_it_was_asked_for(devnets):
    with httpx.Client(base_url=devnets().gateway_url, trust_env=False) as client:
        assert client.post("/faults", json={"fault": "kill_session"}).status_code == 404


# --- challenges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "member", "value"),
    [
        (AlterTerms(amount="5000000000000000000"), "amount", "5000000000000000000"),
        (AlterTerms(amount="٣"), "amount", "٣"),
        (AlterTerms(pay_to=ELSEWHERE), "payTo", ELSEWHERE),
        (AlterTerms(asset=ELSEWHERE), "asset", ELSEWHERE),
        (AlterTerms(network="eip155:8453"), "network", "eip155:8453"),
        (AlterTerms(scheme="upfront"), "scheme", "upfront"),
        (AlterTerms(max_timeout_s=10**9), "maxTimeoutSeconds", 10**9),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_altered_terms_are_offered_once(net, payer, fault, member, value):
    original = payer.challenge()["accepts"][0]
    net.faults.inject(fault)

    assert payer.challenge()["accepts"][0] == original | {member: value}
    assert payer.challenge()["accepts"][0] == original


def test_another_facilitator_is_named_in_the_extra_members(net, payer):
    net.faults.inject(AlterTerms(facilitator=ELSEWHERE))
    extra = payer.challenge()["accepts"][0]["extra"]

    assert extra["facilitatorAddress"] == ELSEWHERE
    assert extra["assetTransferMethod"] == "permit2"


def test_terms_that_were_offered_are_honoured_and_a_raised_price_replaces_the_old_one(net, payer):
    usual = payer.payment()
    net.faults.inject(AlterTerms(amount=str(2 * 10**17)), times=None)
    raised = payer.payment()

    assert payer.chat(payment=usual).status_code == 402
    assert payer.chat(payment=raised).status_code == 200


def test_payment_to_a_swapped_payee_goes_to_that_payee(net, payer):
    before = net.chain.token_balance(ELSEWHERE)
    net.faults.inject(AlterTerms(pay_to=ELSEWHERE))
    assert payer.chat().status_code == 200
    (record,) = payer.settlements(net)

    assert net.chain.token_balance(ELSEWHERE) - before == record.amount_atomic > 0


def test_challenge_can_be_downgraded_misdirected_or_replaced_altogether(net, payer):
    net.faults.inject(AlterChallenge(x402_version=1, resource_url="https://elsewhere.example/"))
    altered = payer.challenge()
    assert (altered["x402Version"], altered["resource"]["url"]) == (1, "https://elsewhere.example/")

    net.faults.inject(RawChallenge(header="not base64!"))
    response = payer.http.post("/v1/chat/completions", json=chat_body())
    assert (response.status_code, response.headers["payment-required"]) == (402, "not base64!")

    net.faults.inject(RawChallenge(header="e30=", copies=2))
    response = payer.http.post("/v1/chat/completions", json=chat_body())
    assert response.headers.get_list("payment-required") == ["e30=", "e30="]

    net.faults.inject(RawChallenge(header=None))
    response = payer.http.post("/v1/chat/completions", json=chat_body())
    assert response.status_code == 402
    assert "payment-required" not in response.headers


def test_body_of_a_challenge_can_be_enormous(net, payer):
    net.faults.inject(HugeChallenge(body_bytes=3 * 2**20))
    response = payer.http.post("/v1/chat/completions", json=chat_body())

    assert response.status_code == 402
    assert len(response.content) == 3 * 2**20
    assert decode(response.headers["payment-required"])["x402Version"] == 2


def test_payment_can_be_refused_for_ever_or_with_a_settlement_timeout(net, payer):
    net.faults.inject(RefusePayment(error="settlement_timeout"), times=3)
    payment = payer.payment()
    refusals = [payer.chat(payment=payment) for _ in range(3)]

    assert {refusal.status_code for refusal in refusals} == {402}
    assert decode(refusals[0].headers["payment-required"])["error"] == "settlement_timeout"
    assert payer.chat(payment=payment).status_code == 200


# --- sessions and settlement ------------------------------------------------------------------------------


def test_session_can_be_declared_dead_and_its_id_forged(net, payer):
    session = payer.chat().headers["x-upto-session"]
    net.faults.inject(KillSession())
    assert payer.chat(session=session).status_code == 402

    net.faults.inject(ForgeSessionId(value="a b%0d%0aSet-Cookie: x"))
    assert payer.chat(session=session).headers["x-upto-session"] == "a b%0d%0aSet-Cookie: x"
    assert payer.chat(session=session).headers["x-upto-session"] == session


@pytest.mark.parametrize(
    ("fault", "taken", "success"),
    [(SettleAtCap(), 10**17, True), (NeverSettle(), 0, True), (FailSettlement(reason="no_gas"), 0, False)],
)
def test_session_can_be_settled_at_its_cap_or_never(net, payer, fault, taken, success):
    net.close_sessions()  # the fault strikes once
    payer.chat()
    net.faults.inject(fault)
    (record,) = payer.settlements(net)

    assert (record.amount_atomic, record.success) == (taken, success)
    assert net.chain.token_balance(payer.address) == 10 * 10**18 - taken


def test_call_whose_own_settlement_fails_gets_a_402_that_says_so(devnets):
    net = devnets(sessions=False)
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        net.faults.inject(FailSettlement(reason="settlement_timeout"))
        failed = payer.chat()
        net.faults.inject(WrongTransaction(transaction="0xabc"))
        lied = payer.chat()

    assert (failed.status_code, failed.text) == (402, "{}")
    assert decode(failed.headers["payment-response"])["errorReason"] == "settlement_timeout"
    assert decode(failed.headers["payment-response"])["success"] is False
    assert decode(lied.headers["payment-response"])["transaction"] == "0xabc"


def test_data_settlement_can_name_a_wrong_transaction(net, payer):
    net.faults.inject(WrongTransaction(transaction="0xabc"), times=2)
    individual = {"x-settlement-type": "individual"}

    assert payer.chat(headers=individual).headers["x-settlement-tx-hash"] == "0xabc"
    final = events_of(payer.chat(STREAM, headers=individual).text)[-1]
    assert final["data_settlement_transaction_hash"] == "0xabc"


def test_another_payers_settlement_can_be_passed_off_as_the_clients(devnets):
    net = devnets(sessions=False)
    with Payer(net.gateway_url, private_key=net.account(opg="1", approved=True).private_key) as payer:
        for elsewhere in (None, ELSEWHERE):
            net.faults.inject(SettleForSomebodyElse(pay_to=elsewhere))
            told = decode(payer.chat().headers["payment-response"])
            receipt = net.chain.rpc("eth_getTransactionReceipt", [told["transaction"]])
            transfer, settled = receipt["logs"]
            moved = contract("OPG").decode_log(transfer)

            assert (receipt["status"], told["success"], told["payer"]) == ("0x1", True, payer.address)
            assert contract("UptoProxy").decode_log(settled) == {"event": "Settled"}
            assert moved["from"] != payer.address.lower()
            assert moved["to"] == (elsewhere or net.network["payees"][0]).lower()
            assert str(moved["value"]) == told["amount"]
        assert net.chain.token_balance(payer.address) == 10**18
        assert decode(payer.chat().headers["payment-response"])["success"]
        assert net.chain.token_balance(payer.address) < 10**18


def test_session_can_be_settled_for_somebody_else(net, payer):
    net.close_sessions()
    before = net.chain.token_balance(payer.address)
    payer.chat()
    net.faults.inject(SettleForSomebodyElse())
    record = net.close_sessions()[-1]

    assert record.success
    assert record.amount_atomic > 0
    assert net.chain.token_balance(payer.address) == before


# --- answers ----------------------------------------------------------------------------------------------


def test_answer_after_payment_can_be_an_error(net, payer):
    net.faults.inject(AnswerStatus(status=429, body="slow down", content_type="text/plain", retry_after_s=7))
    response = payer.chat()

    assert (response.status_code, response.text) == (429, "slow down")
    assert response.headers["retry-after"] == "7"
    assert "x-upto-session" in response.headers
    assert payer.chat().status_code == 200


@pytest.mark.parametrize("when", ["unpaid", "paid"])
def test_client_can_be_sent_elsewhere(net, payer, when):
    net.faults.inject(Redirect(location="https://elsewhere.example/v1", when=when))
    payment = None if when == "unpaid" else payer.payment()
    headers = {"payment-signature": payment} if payment else {}
    response = payer.http.post("/v1/chat/completions", json=chat_body(), headers=headers)

    assert response.status_code == 307
    assert response.headers["location"] == "https://elsewhere.example/v1"


@pytest.mark.parametrize("charge", [True, False])
def test_connection_can_be_dropped_after_payment(net, payer, charge):
    payment = payer.payment()
    net.faults.inject(HangUp(charge=charge))
    with pytest.raises(httpx.TransportError):
        payer.chat(payment=payment)
    records = payer.settlements(net)

    assert len(records) == charge


def test_complete_answer_can_be_garbled(net, payer):
    net.faults.inject(GarbleBody())
    response = payer.chat()

    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


def test_stream_can_end_early_without_its_end(net, payer):
    net.faults.inject(TruncateStream(after_deltas=2))
    response = payer.chat(STREAM)

    assert len(events_of(response.text)) == 2
    assert "[DONE]" not in response.text


def test_stream_can_lose_its_connection(net, payer):
    payment = payer.payment()
    net.faults.inject(TruncateStream(after_deltas=2, cut_connection=True))

    with pytest.raises(httpx.TransportError):
        payer.chat(STREAM, payment=payment)


def test_truncated_stream_is_charged_for_what_went_out(net, payer):
    net.faults.inject(TruncateStream(after_deltas=2))
    payer.chat(STREAM)
    (record,) = payer.settlements(net)
    whole = payer.chat().json()["opengradient"]["cost_opg"]

    assert 0 < record.amount_atomic < float(whole) * 10**18


def test_stream_can_end_without_done_or_be_empty(net, payer):
    net.faults.inject(OmitDone())
    response = payer.chat(STREAM)
    assert events_of(response.text)[-1]["choices"][0]["finish_reason"] == "stop"
    assert "[DONE]" not in response.text

    net.faults.inject(EmptyStream())
    assert payer.chat(STREAM).text == ""
    net.faults.inject(EmptyStream(send_done=True))
    assert payer.chat(STREAM).text == "data: [DONE]\n\n"


def test_stream_can_break_off_with_an_error_or_carry_nonsense(net, payer):
    net.faults.inject(ErrorEvent(after_deltas=1, message="Out of luck."))
    events = events_of(payer.chat(STREAM).text)
    assert events[-1] == {"error": "Out of luck."}
    assert len(events) == 2

    net.faults.inject(RawEvent(text="data: {broken\n\n", after_deltas=1))
    assert "data: {broken\n\n" in payer.chat(STREAM).text


def test_stream_can_drip(net, payer):
    payment = payer.payment()
    net.faults.inject(SlowDrip(pace_s=0.03))
    begun = time.monotonic()
    deltas = len(events_of(payer.chat(STREAM, payment=payment).text))

    assert time.monotonic() - begun > 0.03 * (deltas - 1)


@pytest.mark.parametrize("style", list(ToolCallStyle))
def test_tool_calls_are_streamed_in_every_dialect_and_hashed_alike(net, payer, style):
    net.faults.inject(StreamStyle(tool_calls=style))
    parts = [
        part
        for event in events_of(payer.chat(TOOL_BODY).text)
        for part in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    net.faults.inject(StreamStyle(tool_calls=style))
    spoken = events_of(payer.chat(TOOL_BODY).text)[-1]
    whole = payer.chat({**TOOL_BODY, "stream": False}).json()

    assert parts
    assert (
        "".join(part["function"].get("arguments", "") for part in parts)
        == (whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    )
    assert spoken["tee_output_hash"] == whole["tee_output_hash"]


def test_deltas_can_come_as_messages_and_usage_can_be_missing(net, payer):
    net.faults.inject(StreamStyle(as_message=True))
    assert "message" in events_of(payer.chat(STREAM).text)[0]["choices"][0]

    net.faults.inject(OmitUsage(), times=2)
    assert "usage" not in payer.chat().json()
    assert "usage" not in events_of(payer.chat(STREAM).text)[-1]


# --- proofs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [chat_body(), STREAM], ids=["whole", "stream"])
def test_proof_can_be_forged_or_left_out(net, payer, body):
    key = payer.http.get("/signing-key").json()["public_key"]
    net.faults.inject(ForgeProof(part="signature"))
    forged = answer_of(payer.chat(body).text)[2]
    net.faults.inject(ForgeProof(part="absent"))
    without = answer_of(payer.chat(body).text)[2]

    assert not verify_proof(proof_of(forged), public_key_pem=key)
    assert not [member for member in without if member.startswith("tee_")]
    assert verify_proof(proof_of(answer_of(payer.chat(body).text)[2]), public_key_pem=key)


def test_proof_of_another_call_can_be_given_for_this_one(net, payer):
    key = payer.http.get("/signing-key").json()["public_key"]
    ask = (chat_body(f"Question {number}") for number in range(9))

    def proof():
        return proof_of(payer.chat(next(ask)).json())

    first = proof()
    net.faults.inject(ForgeProof(part="replayed"))
    replayed = proof()
    net.faults.inject(ForgeProof(part="reused_signature"))
    reused = proof()

    assert replayed == first
    assert verify_proof(replayed, public_key_pem=key)
    assert not verify_proof(reused, public_key_pem=key)
    assert reused.request_hash not in (first.request_hash, replayed.request_hash)


def test_first_call_of_all_can_be_given_the_proof_of_no_call():
    with Devnet() as fresh, Payer(fresh.gateway_url, private_key=fresh.account(approved=True).private_key) as payer:
        key = payer.http.get("/signing-key").json()["public_key"]
        fresh.faults.inject(ForgeProof(part="replayed"))
        assert verify_proof(proof_of(payer.chat().json()), public_key_pem=key)


# --- time -------------------------------------------------------------------------------------------------


def date_of(response) -> float:
    dates = response.headers.get_list("date")
    assert len(dates) == 1
    return parsedate_to_datetime(dates[0]).timestamp()


def test_gateways_clock_can_be_wrong_and_the_chains_stays_right(net, payer):
    began_s = int(time.time())
    net.faults.inject(SkewClock(by_s=-7200), times=None)
    wrong = [date_of(payer.http.post("/v1/chat/completions", json=chat_body())), date_of(payer.chat())]
    right = [date_of(payer.http.get(path)) for path in ("/network", "/explorer", "/health")]
    net.faults.clear()

    right += [date_of(payer.chat()), net.chain.now_s()]

    assert all(began_s <= moment_s + 7200 <= time.time() for moment_s in wrong)
    assert all(began_s <= moment_s <= time.time() for moment_s in right)


def test_chain_can_be_reorganised_over_http_and_a_lost_payment_leaves_no_trace(net, payer):
    net.close_sessions()
    payer.http.headers["x-fault-token"] = net.fault_token
    before = net.chain.token_balance(payer.address)
    payer.chat()
    transaction = net.close_sessions()[-1].transaction
    depth = 1 + int(payer.http.post("/rpc", json=_rpc("eth_blockNumber")).json()["result"], 16)
    depth -= int(net.chain.rpc("eth_getTransactionReceipt", [transaction])["blockNumber"], 16)

    assert payer.http.post("/reorganise", json={"depth": depth}).json() == {"lost": []}
    assert net.chain.token_balance(payer.address) < before
    depth += 1
    assert payer.http.post("/reorganise", json={"depth": depth, "lose": "all"}).json()["lost"] == [transaction]
    assert net.chain.token_balance(payer.address) == before
    assert payer.http.get(f"/explorer/tx/{transaction}").status_code == 404
    for nonsense in ({}, {"depth": True}, {"depth": 1, "lose": 3}, {"depth": 10**9}, []):
        assert payer.http.post("/reorganise", json=nonsense).status_code == 400


def _rpc(method: str) -> dict:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": []}
