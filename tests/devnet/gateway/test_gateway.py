"""The paid gateway over real sockets: its wire, its sessions, and what calls cost on chain."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.faults import SlowDrip
from opengradient_devnet.gateway.pricing import load_prices
from opengradient_devnet.gateway.proofs.tee import output_hash, request_hash
from opengradient_devnet.model.protocol import Chunk, ModelError
from support.answers import answer_of, events_of, proof_of, verify_proof
from support.payer import Payer, chat_body, decode, encode

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "gateway_responses.json").read_text())
CAPTURED = {entry["name"]: entry for entry in [*VECTORS["responses"], *VECTORS["errors"]]}
TOOLS = CAPTURED["tools"]["request"]["tools"]


@pytest.fixture
def payer(net, account):
    with Payer(net.gateway_url, private_key=account.private_key) as payer:
        yield payer


def payer_of(net: Devnet, *, opg: str = "10") -> Payer:
    return Payer(net.gateway_url, private_key=net.account(opg=opg, approved=True).private_key)


def cost_of(response: httpx.Response) -> int:
    """What a call costs by its usage and the price list, computed apart from the gateway."""
    content = answer_of(response.text)[2]
    usage, price = content["usage"], load_prices().find(content["model"])
    micro_usd = usage["prompt_tokens"] * price.input_usd_per_mtok
    micro_usd += usage["completion_tokens"] * price.output_usd_per_mtok
    atomic = micro_usd * 10**12 / load_prices().opg_usd
    return int(atomic.to_integral_value("ROUND_CEILING"))


def shape(value):
    """Keys and types of a JSON value, without its contents; lists by their first entry."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


# --- unpaid -----------------------------------------------------------------------------------------------


def test_unpaid_request_gets_the_captured_challenge_with_this_networks_values(net, payer):
    response = payer.http.post("/v1/chat/completions", json=chat_body())
    challenge, captured = decode(response.headers["payment-required"]), decode(VECTORS["challenge_header"])

    assert (response.status_code, response.text) == (402, CAPTURED["unpaid"]["body"])
    assert response.headers["content-type"] == CAPTURED["unpaid"]["headers"]["content-type"]
    assert shape(challenge) == shape(captured)
    assert challenge["extensions"] == captured["extensions"]
    assert challenge["error"] == "Payment required"
    assert challenge["resource"]["url"] == f"{net.gateway_url}/v1/chat/completions"
    (offer,) = challenge["accepts"]
    assert offer["network"] == f"eip155:{net.network['chain_id']}"
    assert offer["payTo"] in net.network["payees"]
    assert offer["extra"]["facilitatorAddress"] in net.network["facilitators"]


def test_unreadable_payment_gets_the_challenge_again(payer):
    for garbage in ("garbage", encode({"x402Version": 1}), encode([1]), ""):
        response = payer.http.post("/v1/chat/completions", json=chat_body(), headers={"payment-signature": garbage})
        assert (response.status_code, response.text) == (402, "{}")
        assert decode(response.headers["payment-required"])["error"] == "Payment required"


def test_wrong_signature_is_refused_with_the_facilitators_reason(payer):
    content = decode(payer.payment())
    content["payload"]["signature"] = "0x" + "11" * 64 + "1b"
    response = payer.chat(payment=encode(content))
    captured = decode(CAPTURED["bad_signature"]["headers"]["payment-required"])

    assert (response.status_code, response.text) == (402, "{}")
    assert decode(response.headers["payment-required"])["error"] == captured["error"]


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "1"},
        {"asset": "0xfbc2051ae2265686a469421b2c5a2d5462fbf5eb"},
        {"payTo": "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"},
        {"network": "eip155:8453"},
        {"scheme": "exact"},
        {"maxTimeoutSeconds": 301},
        {"extra": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_payment_must_quote_the_offer_exactly(payer, change):
    challenge = payer.challenge()
    altered = decode(payer.payment(challenge))
    altered["accepted"] = challenge["accepts"][0] | change

    assert payer.chat(payment=encode(altered)).status_code == 402


def test_extra_members_of_the_quoted_offer_may_be_more_than_were_offered(payer):
    challenge = payer.challenge()
    content = decode(payer.payment(challenge))
    content["accepted"] = {
        **challenge["accepts"][0],
        "extra": {**challenge["accepts"][0]["extra"], "more": 1},
    }

    assert payer.chat(payment=encode(content)).status_code == 200


# --- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "private", "individual", "tools"])
def test_complete_answers_have_the_captured_form(devnets, name):
    captured = CAPTURED[name]
    with payer_of(devnets(quotes_costs=False)) as payer:
        response = payer.chat(captured["request"], headers={"x-settlement-type": captured["settlement_type"]})
    ours, theirs = response.json(), json.loads(captured["body"])
    for usage in (ours["usage"], theirs["usage"]):
        usage.pop("prompt_tokens_details", None)
        usage.pop("completion_tokens_details", None)

    assert response.status_code == captured["status"]
    assert response.text == json.dumps(response.json(), indent=2, sort_keys=True) + "\n"
    assert shape(ours) == shape(theirs)
    assert ours["tee_request_hash"] == theirs["tee_request_hash"], "the same request has the same hash"
    assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"]
    expected = set(captured["headers"])
    if name == "individual":
        expected |= {"x-settlement-queue-nonce"}
    assert set(response.headers) - {"date", "content-length"} == expected
    assert response.headers["content-type"] == captured["headers"]["content-type"]


@pytest.mark.parametrize("name", ["plain_stream", "individual_stream", "tools_stream"])
def test_streams_have_the_captured_form(devnets, name):
    captured = CAPTURED[name]
    with payer_of(devnets(quotes_costs=False)) as payer:
        response = payer.chat(captured["request"], headers={"x-settlement-type": captured["settlement_type"]})
    ours, theirs = events_of(response.text), events_of(captured["body"])
    for usage in (ours[-1]["usage"], theirs[-1]["usage"]):
        usage.pop("prompt_tokens_details", None)
        usage.pop("completion_tokens_details", None)

    assert set(response.headers) - {"date", "transfer-encoding"} == set(captured["headers"])
    assert response.headers["content-type"] == captured["headers"]["content-type"]
    assert list(ours[-1]) == list(theirs[-1])
    assert shape(ours[-1]) == shape(theirs[-1])
    assert ours[-1]["tee_request_hash"] == theirs[-1]["tee_request_hash"]
    assert all(event["choices"][0]["finish_reason"] is None for event in ours[:-1])
    assert response.text.endswith("\n\ndata: [DONE]\n\n")
    final_line = response.text.splitlines()[-4]
    is_compact = name == "individual_stream"
    assert final_line == "data: " + json.dumps(
        json.loads(final_line[6:]), separators=(",", ":") if is_compact else None
    )


@pytest.mark.parametrize(
    "body", [chat_body(), chat_body(stream=True), chat_body("What is the price of ETH", tools=TOOLS)]
)
def test_every_answer_is_proven_by_the_published_key(net, payer, body):
    key = payer.http.get("/signing-key").json()
    asked_s = int(time.time())
    text, tool_calls, final = answer_of(payer.chat(body).text)
    proof = proof_of(final)

    assert shape(key) == shape(VECTORS["signing_key"])
    assert final["tee_id"] == key["tee_id"]
    assert verify_proof(proof, public_key_pem=key["public_key"])
    assert proof.request_hash == request_hash(body)
    assert proof.output_hash == output_hash(
        text=text, tool_calls=tool_calls, finish_reason=final["choices"][0]["finish_reason"]
    )
    assert asked_s <= proof.timestamp_s <= time.time()


def test_streamed_tool_calls_are_hashed_as_the_whole_calls(payer):
    body = chat_body("What is the price of ETH", tools=TOOLS)
    whole = answer_of(payer.chat(body).text)
    streamed = answer_of(payer.chat({**body, "stream": True}).text)

    assert len(streamed[1]) > 1, "the arguments came in fragments"
    assert proof_of(streamed[2]).output_hash == proof_of(whole[2]).output_hash


def test_answers_quote_their_cost_as_strings(payer):
    response = payer.chat()
    quote = response.json()["opengradient"]

    assert Decimal(quote["cost_opg"]) * 10**18 == cost_of(response)
    assert quote["opg_price_usd"] == "0.2"
    assert Decimal(quote["cost_usd"]) <= Decimal(quote["cost_opg"]) * Decimal(quote["opg_price_usd"])


@pytest.mark.parametrize(
    "model", ["gpt-5", "openai/gpt-5", "claude-sonnet-4-6", "google/gemini-2.5-pro", "x-ai/grok-4"]
)
def test_models_answer_under_their_wire_name_and_under_their_full_name(payer, model):
    response = payer.chat(chat_body(model=model))

    assert response.status_code == 200
    assert response.json()["model"] == model


def test_every_listed_model_is_served_and_priced(net, payer):
    page = payer.http.get("/v1/models").json()
    prices = load_prices()

    assert {model["id"] for model in page["data"]} == set(prices.models)
    assert {model["owned_by"] for model in page["data"]} >= {"openai", "anthropic", "google", "x-ai"}
    assert all(model["owned_by"] == model["id"].partition("/")[0] or "/" not in model["id"] for model in page["data"])
    for model in page["data"]:
        assert model["object"] == "model"
        assert model["context_length"] > 0
        assert Decimal(model["pricing"]["input_usd_per_mtok"]) > 0


@dataclasses.dataclass
class ThinkingModel:
    """A model that says one word, and the next one only when it is told to go on."""

    go_on: threading.Event = dataclasses.field(default_factory=threading.Event)

    async def stream(self, request, *, delivery=None):
        yield Chunk(delta={"content": "first "}, model="gpt-5")
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        yield Chunk(delta={"content": "second"}, model="gpt-5")
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        yield Chunk(delta={}, model="gpt-5", finish_reason="stop", usage=usage)

    async def aclose(self):
        pass


def test_first_event_arrives_while_the_model_still_thinks():
    model = ThinkingModel()
    with Devnet(upstream=model) as net, payer_of(net) as payer:
        headers = {"payment-signature": payer.payment()}
        body = chat_body(stream=True)
        with payer.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line)
            assert not model.go_on.is_set()
            model.go_on.set()
            rest = [line for line in lines if line]

    assert "first" in first
    assert "second" in rest[0]
    assert rest[-1] == "data: [DONE]"


# --- errors after payment ---------------------------------------------------------------------------------


def test_unknown_model_is_an_error_after_payment_and_costs_nothing(net):
    with payer_of(net) as payer:
        captured = CAPTURED["unknown_model"]
        response = payer.chat(chat_body(model="nope"))
        session = response.headers["x-upto-session"]

        assert (response.status_code, response.text) == (captured["status"], captured["body"])
        assert set(response.headers) - {"date", "content-length"} == set(captured["headers"])
        assert payer.chat(session=session).status_code == 200
        (record,) = payer.settlements(net)
        assert record.calls == 2
        assert net.chain.token_balance(payer.address) == 10 * 10**18 - record.amount_atomic


def test_a_missing_bearer_token_is_an_error_after_payment(payer):
    captured = CAPTURED["no_bearer"]
    del payer.http.headers["authorization"]
    unpaid = payer.http.post("/v1/chat/completions", json=chat_body())
    response = payer.chat()

    assert unpaid.status_code == 402
    assert (response.status_code, response.text) == (captured["status"], captured["body"])
    assert response.headers["content-type"] == captured["headers"]["content-type"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": "gpt-5"}', "application/json", 400),
        (b'{"model": "gpt-5", "messages": []}', "application/json", 400),
        (b'{"model": "gpt-5", "messages": ["hi"]}', "application/json", 400),
        (b'{"model": 5, "messages": [{"role": "user", "content": "hi"}]}', "application/json", 400),
        (
            b'{"model": "gpt-5", "temperature": "hot", "messages": [{"role": "user", "content": "hi"}]}',
            "application/json",
            400,
        ),
        (b"model=gpt-5", "application/x-www-form-urlencoded", 415),
        (b" " * (33 * 2**20), "application/json", 413),
    ],
    ids=["not_json", "not_object", "no_messages", "empty", "text_message", "model", "temperature", "form", "size"],
)
def test_malformed_requests_are_errors_that_leave_the_session_alive(payer, content, content_type, status):
    headers = {"content-type": content_type, "payment-signature": payer.payment()}
    response = payer.http.post("/v1/chat/completions", content=content, headers=headers)

    assert response.status_code == status
    assert response.json().get("error") or response.json()["title"]
    assert payer.chat(session=response.headers["x-upto-session"]).status_code == 200


@dataclasses.dataclass
class FailingModel:
    """A model that fails at once, or after some chunks."""

    chunks: int = 0

    async def complete(self, request, *, delivery=None):
        raise ModelError(429, "Busy.", provider_status=429, is_retryable=True)

    async def stream(self, request, *, delivery=None):
        for _ in range(self.chunks):
            yield Chunk(delta={"content": "word "}, model="gpt-5")
        raise ModelError(502, "Broken.", provider_status=500)

    async def aclose(self):
        pass


def test_provider_failure_is_passed_on_and_costs_nothing():
    with Devnet(upstream=FailingModel()) as net, payer_of(net) as payer:
        whole = payer.chat()
        session = whole.headers["x-upto-session"]
        streamed = payer.chat(chat_body(stream=True), session=session)
        records = payer.settlements(net)

    assert (whole.status_code, streamed.status_code) == (429, 502)
    assert whole.json() == {
        "error": "Busy.",
        "exception_type": "ModelError",
        "source": "provider",
        "provider_status": 429,
        "retryable": True,
    }
    assert records == []


def test_provider_failure_in_a_stream_is_an_error_event_and_then_the_end():
    with Devnet(upstream=FailingModel(chunks=2)) as net, payer_of(net) as payer:
        response = payer.chat(chat_body(stream=True))
        (record,) = payer.settlements(net)

    assert response.status_code == 200
    assert [next(iter(event)) for event in events_of(response.text)] == ["choices", "choices", "error"]
    assert "[DONE]" not in response.text
    assert record.amount_atomic > 0, "what was streamed is charged"


# --- sessions and money -----------------------------------------------------------------------------------


def test_payer_pays_exactly_the_sum_of_the_calls_of_a_session_in_one_transaction(net):
    net.close_sessions()
    earned = net.chain.token_balance(net.network["payees"][0])
    with payer_of(net) as payer:
        responses = [payer.chat()]
        session = responses[0].headers["x-upto-session"]
        responses += [payer.chat(chat_body(f"Question {n}?", stream=n % 2 == 0), session=session) for n in range(6)]
        responses.append(payer.chat(chat_body("And you?", model="claude-opus-4-5"), session=session))
        assert {response.headers["x-upto-session"] for response in responses} == {session}
        assert all("payment-response" not in response.headers for response in responses)
        assert net.chain.token_balance(payer.address) == 10 * 10**18, "nothing is settled while it is open"

        (record,) = payer.settlements(net)

    spent = sum(cost_of(response) for response in responses)
    assert record.amount_atomic == spent
    assert record.calls == len(responses)
    assert net.chain.token_balance(payer.address) == 10 * 10**18 - spent
    assert net.chain.token_balance(net.network["payees"][0]) == earned + spent


def test_session_is_looked_at_before_the_signature(payer, net):
    first = payer.chat()
    before = set(net.open_sessions)
    both = payer.chat(session=first.headers["x-upto-session"], payment=payer.payment())
    dead = payer.chat(session="dead", payment=payer.payment())

    assert both.headers["x-upto-session"] == first.headers["x-upto-session"]
    assert dead.status_code == 402
    assert set(net.open_sessions) == before


def test_dead_session_gets_a_402_without_a_challenge(payer):
    captured = CAPTURED["dead_session"]
    response = payer.chat(session="5dbeb8a9-8d5c-4bb5-b0d1-0a1b2c3d4e5f")

    assert (response.status_code, response.text) == (captured["status"], captured["body"])
    assert set(response.headers) - {"date", "content-length"} == set(captured["headers"])


def test_session_does_not_serve_another_path(payer):
    session = payer.chat().headers["x-upto-session"]
    response = payer.http.post(
        "/v1/completions", json={"model": "gpt-5", "prompt": "hi"}, headers={"x-upto-session": session}
    )

    assert response.status_code == 402
    assert "payment-required" not in response.headers


def test_idle_session_is_settled_and_dead():
    with Devnet(idle_timeout_s=0.2) as net, payer_of(net) as payer:
        response = payer.chat()
        deadline = time.monotonic() + 60
        while not net.settlements and time.monotonic() < deadline:
            time.sleep(0.02)
        (record,) = net.settlements
        again = payer.chat(session=response.headers["x-upto-session"])

        assert record.amount_atomic == cost_of(response)
        assert again.status_code == 402
        assert net.chain.token_balance(payer.address) == 10 * 10**18 - record.amount_atomic


def test_exhausted_session_serves_its_last_call_and_is_settled_at_its_cap():
    with Devnet(session_cap_opg="0.002") as net, payer_of(net) as payer:
        first = payer.chat()
        session = first.headers["x-upto-session"]
        second = payer.chat(session=session)
        third = payer.chat(session=session)
        (record,) = payer.settlements(net)

        assert cost_of(first) < 2 * 10**15 < cost_of(first) + cost_of(second)
        assert (second.status_code, third.status_code) == (200, 402)
        assert record.amount_atomic == 2 * 10**15
        assert net.chain.token_balance(payer.address) == 10 * 10**18 - 2 * 10**15


def test_same_payment_sent_again_joins_its_session_and_is_refused_after_settlement(net):
    with payer_of(net) as payer:
        payment = payer.payment()
        responses = [payer.chat(payment=payment), payer.chat(payment=payment)]
        assert len({response.headers["x-upto-session"] for response in responses}) == 1
        (record,) = payer.settlements(net)
        replayed = payer.chat(payment=payment)

    assert record.amount_atomic == sum(cost_of(response) for response in responses)
    assert replayed.status_code == 402
    assert len(payer.settlements(net)) == 1


def test_second_signature_over_a_nonce_in_use_is_refused(net):
    with payer_of(net) as payer:
        challenge = payer.challenge()
        first = payer.chat(payment=payer.payment(challenge, nonce=7, deadline_s=int(time.time()) + 299))
        second = payer.chat(payment=payer.payment(challenge, nonce=7, deadline_s=int(time.time()) + 290))

    assert (first.status_code, second.status_code) == (200, 402)
    assert decode(second.headers["payment-required"])["error"] == "duplicate_settlement"


def test_a_hundred_parallel_requests_with_one_payment_are_one_session(net):
    with payer_of(net) as payer:
        headers, body = {"payment-signature": payer.payment()}, chat_body(model="gpt-5-nano")
        responses: list[httpx.Response] = []

        def call() -> None:
            responses.append(payer.http.post("/v1/chat/completions", json=body, headers=headers))

        threads = [threading.Thread(target=call) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (record,) = payer.settlements(net)

    assert {response.status_code for response in responses} == {200}
    assert len({response.headers["x-upto-session"] for response in responses}) == 1
    assert record.calls == 100
    assert record.amount_atomic == sum(cost_of(response) for response in responses)


def test_abandoned_stream_is_charged_for_what_was_streamed(net):
    net.faults.inject(SlowDrip(pace_s=0.05))
    with payer_of(net) as payer:
        body = chat_body(stream=True)
        headers = {"payment-signature": payer.payment()}
        with payer.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            lines = (line for line in response.iter_lines() if line)
            for _ in range(3):
                next(lines)
        (record,) = payer.settlements(net)
        whole = payer.chat(chat_body())

        assert 0 < record.amount_atomic < cost_of(whole)
        assert record.calls == 1


def test_closing_the_devnet_settles_open_sessions():
    with Devnet() as net, payer_of(net) as payer:
        response = payer.chat()

    (record,) = net.settlements
    assert record.success
    assert record.amount_atomic == cost_of(response)


def test_wallet_without_money_or_approval_is_refused_before_it_is_served(net):
    for account in (net.account(opg="0.01", approved=True), net.account(opg="10", approved=False)):
        with Payer(net.gateway_url, private_key=account.private_key) as payer:
            response = payer.chat()
            assert response.status_code == 402
            assert "permit2" in decode(response.headers["payment-required"])["error"]


# --- settlement of every call on its own --------------------------------------------------------------------


@pytest.fixture(scope="module")
def direct(devnets):
    """A gateway without sessions that offers every scheme."""
    return devnets(sessions=False, schemes=tuple(Scheme), quotes_costs=False)


def test_call_without_sessions_is_settled_for_its_cost_before_the_body(direct):
    with payer_of(direct) as payer:
        response = payer.chat()
        receipt = decode(response.headers["payment-response"])

        assert receipt == {
            "success": True,
            "payer": payer.address,
            "transaction": receipt["transaction"],
            "network": direct.network["network"],
            "amount": str(cost_of(response)),
        }
        assert "x-upto-session" not in response.headers
        assert direct.chain.token_balance(payer.address) == 10 * 10**18 - cost_of(response)
        on_chain = direct.chain.rpc("eth_getTransactionReceipt", [receipt["transaction"]])
        assert on_chain["status"] == "0x1"


def test_stream_without_sessions_is_settled_for_its_worst_case_before_the_first_token(direct):
    with payer_of(direct) as payer:
        response = payer.chat(chat_body(stream=True, max_tokens=50))
        receipt = decode(response.headers["payment-response"])
        usage = events_of(response.text)[-1]["usage"]
        worst = load_prices().cost(
            load_prices().find("gpt-5"), prompt_tokens=usage["prompt_tokens"], completion_tokens=50
        )

        assert int(receipt["amount"]) == worst.atomic > cost_of(response)
        assert direct.chain.token_balance(payer.address) == 10 * 10**18 - worst.atomic


@pytest.mark.parametrize("offer", [1, 2], ids=["permit2", "eip3009"])
@pytest.mark.parametrize("stream", [False, True])
def test_exact_payment_is_taken_whole(direct, offer, stream):
    with payer_of(direct) as payer:
        response = payer.chat(chat_body(stream=stream), payment=payer.payment(offer=offer))

        assert response.status_code == 200
        assert decode(response.headers["payment-response"])["amount"] == str(10**16)
        assert direct.chain.token_balance(payer.address) == 10 * 10**18 - 10**16


def test_error_without_sessions_takes_nothing_and_leaves_the_payment_usable(direct):
    with payer_of(direct) as payer:
        payment = payer.payment()
        failed = payer.chat(chat_body(model="nope"), payment=payment)
        assert failed.status_code == 400
        assert "payment-response" not in failed.headers
        assert direct.chain.token_balance(payer.address) == 10 * 10**18

        assert payer.chat(payment=payment).status_code == 200
        assert payer.chat(payment=payment).status_code == 402, "a nonce is good for one settlement"


def test_exact_payment_to_a_gateway_with_sessions_is_settled_on_its_own():
    with Devnet(schemes=[Scheme.UPTO, Scheme.EXACT_PERMIT2]) as net, payer_of(net) as payer:
        response = payer.chat(payment=payer.payment(offer=1))

        assert "x-upto-session" not in response.headers
        assert decode(response.headers["payment-response"])["success"] is True
        assert net.open_sessions == []


# --- plain completions -----------------------------------------------------------------------------------------


def test_text_completion_has_a_completion_field_and_is_paid_like_a_chat(net):
    with payer_of(net) as payer:
        payment = payer.payment(payer.challenge(path="/v1/completions"))
        response = payer.http.post(
            "/v1/completions",
            json={"model": "openai/gpt-5", "prompt": "What is x402?"},
            headers={"payment-signature": payment},
        )
        (record,) = payer.settlements(net)

    assert response.json()["completion"] == response.json()["choices"][0]["message"]["content"]
    assert record.amount_atomic == cost_of(response)
