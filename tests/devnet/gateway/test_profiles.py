"""The gateway as real ones are: what the code of 2026-04 does otherwise than the helpful devnet, point by point."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.contracts import contract
from opengradient_devnet.gateway.jobs import Jobs
from opengradient_devnet.gateway.profile import GATEWAY_2026_04, ProfileUnknown
from opengradient_devnet.gateway.proofs.tee import output_hash
from opengradient_devnet.model.protocol import Answer, Chunk, ModelError
from support.answers import answer_of, events_of, proof_of, verify_proof
from support.payer import Payer, chat_body, decode

# Its waits are those of reality; a test has no use for them.
APRIL = dataclasses.replace(GATEWAY_2026_04, failure_delay_s=0.0)
STREAM = chat_body(stream=True)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_token_price",
        "description": "Get the current USD price of a cryptocurrency.",
        "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}},
    },
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


@pytest.fixture(scope="module")
def april(devnets):
    return devnets(behaves_like=APRIL)


@pytest.fixture
def payer(april):
    with Payer(april.gateway_url, private_key=april.account(approved=True).private_key) as payer:
        yield payer


def payer_of(net: Devnet) -> Payer:
    return Payer(net.gateway_url, private_key=net.account(approved=True).private_key)


class Scripted:
    """A model that says what it is told to, cut for its length, and keeps what it was asked."""

    def __init__(self, *, failure: ModelError | None = None, finish_reason: str = "length") -> None:
        self.failure = failure
        self.finish_reason = finish_reason
        self.asked: list[dict] = []

    async def complete(self, request, *, delivery=None):
        self.asked.append(dict(request))
        if self.failure is not None:
            raise self.failure
        message = {"role": "assistant", "content": "one two"}
        return Answer(message=message, finish_reason=self.finish_reason, usage=USAGE, model=request["model"])

    async def stream(self, request, *, delivery=None):
        answer = await self.complete(request)
        yield Chunk(delta={"content": "one two"}, model=answer.model)
        yield Chunk(delta={}, model=answer.model, finish_reason=answer.finish_reason, usage=USAGE)

    async def aclose(self):
        pass


# --- naming one -----------------------------------------------------------------------------------------------


def test_profile_goes_by_its_name_and_what_is_said_beside_it_counts_more():
    with Devnet(behaves_like="gateway-2026-04", idle_timeout_s=7, quotes_costs=True) as net, payer_of(net) as payer:
        assert net.network["session_idle_s"] == 7
        assert payer.challenge()["accepts"][0]["maxTimeoutSeconds"] == 3600
        assert "opengradient" in payer.chat().json()
    with pytest.raises(ProfileUnknown, match="helpful, gateway-2026-04"):
        Devnet(behaves_like="gateway-1999")


# --- refusals, by both ----------------------------------------------------------------------------------------

REFUSED = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": "all"}, "top_p"),
    ({"seed": "a"}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": list("qvwjk")}, "stop"),
]


@pytest.mark.parametrize(("more", "named"), REFUSED)
def test_what_the_live_gateway_does_not_take_is_refused_after_payment_and_costs_nothing(net, account, more, named):
    with Payer(net.gateway_url, private_key=account.private_key) as payer:
        response = payer.chat(chat_body(**more))
        assert (response.status_code, named in response.json()["error"]) == (400, True)
        within = {"temperature": 2, "top_p": 1.0, "seed": 7, "stop": list("qvwj")}
        assert payer.chat(chat_body(**within)).status_code == 200


@pytest.mark.parametrize(("more", "named"), REFUSED)
def test_april_says_the_same_as_a_problem(payer, more, named):
    response = payer.chat(chat_body(**more))

    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, named in response.json()["detail"]) == (400, True)


@pytest.mark.parametrize("role", ["developer", "function", "robot", None])
def test_role_that_the_live_gateway_cannot_read_is_explained_by_the_devnet_and_fails_in_april(
    net, account, payer, role
):
    body = chat_body()
    body["messages"] = [{"role": role, "content": "Be brief."}, *body["messages"]]
    with Payer(net.gateway_url, private_key=account.private_key) as helped:
        explained = helped.chat(body)
    failed = payer.chat(body)

    assert (explained.status_code, f"'{role}'" in explained.json()["error"]) == (400, True)
    assert (failed.status_code, failed.json()) == (500, {"error": "Request processing failed"})


# --- what April does otherwise --------------------------------------------------------------------------------


def test_models_are_not_listed_and_unknown_paths_and_methods_are_problems(payer):
    for method, path, status in (
        ("GET", "/v1/models", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
    ):
        response = payer.http.request(method, path, json={})
        assert (response.status_code, response.json()["status"]) == (status, status)
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("model", ["gpt-4o", "openai/gpt-4.1-nano", "no-such-model"])
def test_only_its_own_models_are_sold(payer, model):
    response = payer.chat(chat_body(model=model))

    assert response.status_code == 400
    assert model in response.json()["detail"]


@pytest.mark.parametrize("status", [400, 404, 429, 503])
def test_every_failure_of_the_model_is_the_same_500_or_one_error_event_and_costs_nothing(status):
    slow = dataclasses.replace(APRIL, failure_delay_s=0.3)
    failure = ModelError(status, "Told to nobody.", provider_status=status)
    with Devnet(behaves_like=slow, upstream=Scripted(failure=failure)) as net, payer_of(net) as payer:
        payment, begun = payer.payment(), time.monotonic()
        whole, streamed = payer.chat(payment=payment), payer.chat(STREAM, payment=payment)
        assert time.monotonic() - begun > 0.6
        assert net.close_sessions() == []

    assert (whole.status_code, whole.json()) == (500, {"error": "Request processing failed"})
    assert (streamed.status_code, events_of(streamed.text)) == (200, [{"error": "Request processing failed"}])
    assert "x-upto-session" in streamed.headers


def test_answer_that_was_cut_says_stop_and_the_proof_covers_that():
    with Devnet(behaves_like=APRIL, upstream=Scripted()) as net, payer_of(net) as payer:
        for body in (chat_body(), STREAM):
            text, _calls, final = answer_of(payer.chat(body).text)
            assert final["choices"][0]["finish_reason"] == "stop"
            assert proof_of(final).output_hash == output_hash(text=text, tool_calls=[], finish_reason="stop")


def test_stop_and_web_search_are_hashed_and_go_no_further(april, payer):
    model = Scripted()
    with Devnet(behaves_like=APRIL, upstream=model) as net, payer_of(net) as own:
        own.chat(chat_body(stop=["one"], web_search=True, temperature=0.5))
    hashes = {payer.chat(chat_body(**more)).json()["tee_request_hash"] for more in ({}, {"stop": ["one"]})}

    assert "stop" not in model.asked[0]
    assert "web_search" not in model.asked[0]
    assert model.asked[0]["temperature"] == 0.5
    assert len(hashes) == 2


def test_tool_calls_come_whole_in_streams(payer):
    body = chat_body("What are the prices of ETH and BTC", tools=[TOOL], tool_choice="required")
    whole = answer_of(payer.chat(body).text)
    _text, parts, final = answer_of(payer.chat({**body, "stream": True}).text)

    assert [(part["id"], part["function"]) for part in parts] == [(call["id"], call["function"]) for call in whole[1]]
    assert [part["index"] for part in parts] == list(range(len(parts)))
    assert proof_of(final).output_hash == proof_of(whole[2]).output_hash


def test_text_completion_is_in_its_choice(payer):
    payment = payer.payment(payer.challenge(path="/v1/completions"))
    response = payer.http.post(
        "/v1/completions", json={"model": "gpt-5", "prompt": "Hi"}, headers={"payment-signature": payment}
    )

    assert response.json()["choices"][0]["text"]
    assert not {"completion", "opengradient"} & set(response.json())


def test_browser_gets_a_page_and_a_program_a_challenge(payer):
    browser = {"accept": "text/html,*/*", "user-agent": "Mozilla/5.0"}
    page = payer.http.post("/v1/chat/completions", json=chat_body(), headers=browser)

    assert (page.status_code, page.headers["content-type"]) == (402, "text/html")
    assert "payment-required" not in page.headers
    assert payer.challenge()["accepts"]


def test_individual_stream_has_proof_and_queued_job_in_its_headers(april, payer):
    key = payer.http.get("/signing-key").json()["public_key"]
    response = payer.chat(STREAM, headers={"x-settlement-type": "individual"})
    _text, _calls, final = answer_of(response.text)
    written = {"fromBlock": "0x0", "topics": [contract("Relay").topic("IndividualSettlement")]}
    before = len(april.chain.rpc("eth_getLogs", [written]))
    april.flush_batches()
    after = len(april.chain.rpc("eth_getLogs", [written]))

    assert response.headers["x-settlement-status"] == "queued"
    assert response.headers["x-settlement-job-id"].startswith("settlement-individual-")
    assert not {"x-settlement-tx-hash", "x-settlement-walrus-blob-id"} & set(response.headers)
    assert not [member for member in final if "settlement" in member]
    assert response.headers["x-tee-signature"] == final["tee_signature"]
    assert verify_proof(proof_of(final), public_key_pem=key)
    assert after == before + 1


# --- money in April -------------------------------------------------------------------------------------------


def test_session_is_settled_by_a_job_that_comes_later():
    profile = dataclasses.replace(APRIL, settlement_delay_s=2.0, idle_timeout_s=0.1)
    with Devnet(behaves_like=profile) as net, payer_of(net) as payer:
        session = payer.chat().headers["x-upto-session"]
        time.sleep(0.3)
        assert payer.chat(session=session).status_code == 402
        assert net.settlements == []
        limit = time.monotonic() + 10
        while not net.settlements and time.monotonic() < limit:
            time.sleep(0.02)
        (record,) = net.settlements
        assert net.chain.token_balance(payer.address) == 10 * 10**18 - record.amount_atomic < 10 * 10**18


def test_payment_without_a_session_is_answered_with_a_job_and_settled_after_it():
    with Devnet(behaves_like=APRIL, sessions=False, schemes=[Scheme.UPTO]) as net, payer_of(net) as payer:
        payment = payer.payment()
        told = decode(payer.chat(payment=payment).headers["payment-response"])
        again = payer.chat(payment=payment)
        before = net.chain.token_balance(payer.address)
        (record,) = net.close_sessions()

        assert told["transaction"].startswith("payment-")
        assert told["success"] is True
        assert again.status_code == 402, "one authorization is one job"
        assert before == 10 * 10**18
        assert net.chain.token_balance(payer.address) == before - int(told["amount"]) == before - record.amount_atomic
        assert record.transaction.startswith("0x")


def test_used_up_session_serves_on_and_takes_its_cap():
    with Devnet(behaves_like=APRIL, session_cap_opg="0.002") as net, payer_of(net) as payer:
        session = payer.chat().headers["x-upto-session"]
        statuses = [payer.chat(session=session).status_code for _ in range(4)]
        (record,) = net.close_sessions()

        assert statuses == [200] * 4
        assert (record.calls, record.amount_atomic) == (5, 2 * 10**15)
        assert net.chain.token_balance(payer.address) == 10 * 10**18 - 2 * 10**15


def test_session_is_closed_while_it_is_in_use_and_its_call_is_still_paid():
    with Devnet(behaves_like=APRIL, idle_timeout_s=0.3, pace_s=0.1) as net, payer_of(net) as payer:
        headers, body = {"payment-signature": payer.payment()}, chat_body("Tell me a long story.", stream=True)
        with payer.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            session = response.headers["x-upto-session"]
            lines = response.iter_lines()
            begun = time.monotonic()
            while time.monotonic() - begun < 0.5:
                next(lines)
            assert payer.chat(session=session).status_code == 402
            assert [line for line in lines if line][-1] == "data: [DONE]"
        (record,) = net.close_sessions()
        assert record.amount_atomic > 0


def stream_and_hang_up(payer: Payer, *, session: str, at: bytes) -> None:
    """A streamed call on a socket of its own, closed as soon as `at` has come."""
    body = json.dumps(STREAM).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer x\r\nx-upto-session: {session}"
    )
    address = urlsplit(str(payer.http.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            f"{head}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        seen = b""
        while at not in seen:
            seen += connection.recv(65536)


def test_stream_is_billed_and_in_the_batch_only_for_who_reads_to_the_end_of_the_body():
    profile = dataclasses.replace(APRIL, billing_delay_s=0.5)  # a busy machine notices a reader who left later
    with Devnet(behaves_like=profile) as net, payer_of(net) as payer:
        first = payer.chat()
        session = first.headers["x-upto-session"]
        for _ in range(3):
            stream_and_hang_up(payer, session=session, at=b"[DONE]")
        for _ in range(2):
            stream_and_hang_up(payer, session=session, at=b"0\r\n\r\n")
        (record,) = net.close_sessions()
        (batch,) = net.flush_batches()
        whole = answer_of(payer.chat(STREAM).text)[2]["usage"]

    def cost(usage):
        return -(
            -(usage["prompt_tokens"] * 125 + usage["completion_tokens"] * 1000) * 10**18 // (100 * 10**6 * 20 // 100)
        )

    assert record.calls == 6
    assert batch.size == 3
    assert record.amount_atomic == cost(first.json()["usage"]) + 2 * cost(whole)


def test_batches_are_written_at_twenty():
    with Devnet(behaves_like=APRIL) as net, payer_of(net) as payer:
        session = payer.chat().headers["x-upto-session"]
        for _ in range(20):
            payer.chat(session=session)
        assert [batch.size for batch in net.flush_batches()] == [20, 1]


def test_devnet_that_ends_leaves_no_job_undone():
    with Devnet(behaves_like=APRIL) as net, payer_of(net) as payer:
        payer.chat(headers={"x-settlement-type": "individual"})

    (record,) = net.settlements
    assert record.success


def test_jobs_are_done_once_in_order_when_they_are_due():
    now_s, done = [0.0], []
    jobs = Jobs(delay_s=2, clock=lambda: now_s[0])
    ids = [jobs.submit("payment", lambda number=number: done.append(number)) for number in range(3)]
    jobs.run_due()
    assert done == []
    now_s[0] = 2.0
    jobs.run_due()
    jobs.run_all()

    assert done == [0, 1, 2]
    assert len(set(ids)) == 3


def test_command_line_takes_a_profile(tmp_path):
    from typer.testing import CliRunner

    from opengradient_devnet.cli import app

    options = ["--network-file", str(tmp_path / "net.json"), "--behaves-like"]
    result = CliRunner().invoke(app, [*options, "gateway-1999"])
    assert (result.exit_code, "gateway-2026-04" in result.stderr) == (2, True)


def test_unpaid_model_has_no_profile(april):
    body = chat_body(model="gpt-4o", temperature=3)
    assert httpx.post(f"{april.unpaid_url}/chat/completions", json=body, trust_env=False).status_code == 200
