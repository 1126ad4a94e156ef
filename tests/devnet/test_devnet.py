"""The devnet as a whole: what it publishes, whom it serves, what it costs, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from opengradient_devnet import Account, Devnet
from opengradient_devnet.contracts import TEE_REGISTRY, contract
from opengradient_devnet.devnet import LiveChainRefused
from opengradient_devnet.gateway.pricing import PriceListInvalid, load_prices
from opengradient_devnet.money import OPG_TOKEN
from opengradient_devnet.network_file import remove_network_file, write_network_file
from opengradient_devnet.server import ServerFailed
from support.payer import Payer, chat_body, decode

CLIENTS = ("httpx", "httpcore")
NETWORK_KEYS = [
    "name",
    "chain_id",
    "network",
    "rpc_url",
    "gateway_url",
    "https_gateway_url",
    "facilitator_url",
    "faucet_url",
    "accounts_url",
    "explorer_url",
    "blob_url",
    "asset",
    "permit2",
    "upto_proxy",
    "exact_proxy",
    "payees",
    "facilitators",
    "registry",
    "relay",
    "attestation_root_sha256",
    "session_idle_s",
    "call_id_header",
]


@pytest.fixture(scope="module")
def live():
    """A devnet under the chain id of Base."""
    with Devnet(chain_id=8453, unsafe_live_chain_id=True) as net:
        yield net


@pytest.fixture
def client(net):
    with httpx.Client(base_url=net.gateway_url, trust_env=False) as client:
        yield client


def devnet_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("opengradient-devnet")]


def published_tee(net: Devnet):
    registry = contract("TEERegistry")
    output = net.chain.call(to=TEE_REGISTRY, data=registry.encode("getActiveTEEs", 0))
    ((tee,),) = registry.decode("getActiveTEEs", output)
    return tee


# --- what it publishes ------------------------------------------------------------------------------------


def test_network_is_served_and_written_and_the_file_goes_away_at_the_end(tmp_path):
    path = tmp_path / "state" / "devnet.json"
    with Devnet(network_file=path) as net:
        served = httpx.get(f"{net.gateway_url}/network", trust_env=False).json()
        assert json.loads(path.read_text()) == served == net.network
        assert list(served) == NETWORK_KEYS
        assert served["asset"]["decimals"] == 18
        assert served["registry"]["rpc_url"] == served["rpc_url"] == net.rpc_url
    assert not path.exists()


def test_file_of_another_devnet_is_left_alone(tmp_path):
    path = tmp_path / "devnet.json"
    write_network_file(path, network={"name": "newer"})
    remove_network_file(path, network={"name": "older"})
    assert json.loads(path.read_text()) == {"name": "newer"}

    remove_network_file(path, network={"name": "newer"})
    remove_network_file(path, network={"name": "newer"})
    assert not path.exists()


def test_registry_publishes_the_https_gateway_its_certificate_key_and_payee(net):
    tee = published_tee(net)
    _owner, payment_address, endpoint, public_key, certificate, *_rest = tee
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.load_verify_locations(cadata=certificate)
    with httpx.Client(base_url=endpoint, verify=trust, trust_env=False) as client:
        key = client.get("/signing-key").json()
        challenge = decode(client.post("/v1/chat/completions", json=chat_body()).headers["payment-required"])
    pem = serialization.load_der_public_key(public_key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    assert endpoint == net.https_gateway_url
    assert key["public_key"] == pem.decode()
    assert challenge["accepts"][0]["payTo"].lower() == payment_address.lower()
    assert challenge["resource"]["url"].startswith("https://")


def test_https_gateway_is_not_trusted_without_the_registry(net):
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
        client.get(f"{net.https_gateway_url}/health")


def test_whoever_holds_money_or_signs_is_new_in_every_run(net):
    with Devnet() as other:
        ours, theirs = published_tee(net), published_tee(other)
        assert not set(net.network["payees"]) & set(other.network["payees"])
        assert not set(net.network["facilitators"]) & set(other.network["facilitators"])
        for position in (0, 1, 3, 4):
            assert ours[position] != theirs[position]


def test_only_loopback_is_listened_on(net):
    for url in (net.gateway_url, net.https_gateway_url, net.unpaid_url):
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        # A socket bound to every interface would own this address as well.
        with socket.socket() as neighbour:
            neighbour.bind(("127.0.0.2", parts.port))


# --- wallets ----------------------------------------------------------------------------------------------


def test_wallets_are_made_funded_and_kept_out_of_repr(net, client):
    made = net.account(opg="1.5", approved=True)
    posted = client.post("/accounts", json={"opg": "0.25"}).json()

    assert net.chain.token_balance(made.address) == 15 * 10**17
    assert net.chain.balance(made.address) > 0
    assert made.private_key not in repr(made)
    assert net.chain.token_balance(posted["address"]) == 25 * 10**16
    assert int(posted["private_key"], 16) > 0


def test_faucet_gives_to_any_address_under_a_private_chain_id(net, client):
    address = "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"
    before = net.chain.token_balance(address)
    response = client.post("/faucet", json={"address": address, "opg": "2"})

    assert response.status_code == 200
    assert net.chain.token_balance(address) == before + 2 * 10**18


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/faucet", b'{"address": "nobody"}'),
        ("/faucet", b"{}"),
        ("/accounts", b'{"opg": 0.1}'),
        ("/accounts", b'{"opg": "-1"}'),
        ("/accounts", b'{"opg": "0.0000000000000000001"}'),
        ("/accounts", b"[]"),
        ("/accounts", b"{"),
    ],
)
def test_unreasonable_wishes_are_refused_with_a_reason(client, path, body):
    response = client.post(path, content=body, headers={"content-type": "application/json"})

    assert response.status_code == 400
    assert response.json()["error"]


def test_amounts_are_exact(net):
    assert OPG_TOKEN.atomic("0.000000000000000001") == 1
    assert OPG_TOKEN.atomic(3) == 3 * 10**18
    for nonsense in ("", ".", "1e3", "٣", "1.2.3", " 1"):
        with pytest.raises(ValueError, match="OPG"):
            OPG_TOKEN.atomic(nonsense)


# --- live chain ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain_id", [8453, 84532])
def test_live_chain_id_is_refused_unless_it_is_asked_for(chain_id):
    before = devnet_threads()
    with pytest.raises(LiveChainRefused, match="unsafe"):
        Devnet(chain_id=chain_id)
    assert devnet_threads() == before


def test_under_a_live_chain_id_only_wallets_of_the_devnet_are_served(live):
    stranger = Account(address="0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf", private_key="0x" + "00" * 31 + "01")
    live.chain.fund(stranger.address, token_atomic=10**18, native_wei=10**18)
    live.chain.send(
        stranger,
        to=live.network["asset"]["address"],
        data=contract("OPG").encode("approve", live.network["permit2"], 2**256 - 1),
    )
    with (
        Payer(live.gateway_url, private_key=live.account(approved=True).private_key) as ours,
        Payer(live.gateway_url, private_key=stranger.private_key) as theirs,
    ):
        assert ours.chat().status_code == 200
        payment = theirs.payment()
        refused = theirs.chat(payment=payment)
        assert refused.status_code == 402
        assert decode(refused.headers["payment-required"])["error"] == "payer_not_made_by_this_devnet"

        request = {
            "x402Version": 2,
            "paymentPayload": decode(payment),
            "paymentRequirements": decode(payment)["accepted"],
        }
        assert theirs.http.post("/facilitator/verify", json=request).json()["isValid"] is False
        assert theirs.http.post("/facilitator/settle", json=request).json()["success"] is False
        assert theirs.http.post("/faucet", json={"address": stranger.address}).status_code == 403
    assert live.chain.token_balance(stranger.address) == 10**18


# --- prices -----------------------------------------------------------------------------------------------


def test_cost_is_rounded_up_once_to_the_wei():
    prices = load_prices(
        {
            "opg_usd": "0.07",
            "models": {
                "openai/m": {
                    "context_tokens": 1,
                    "max_output_tokens": 1,
                    "input_usd_per_mtok": "0.1",
                    "output_usd_per_mtok": "3",
                }
            },
        }
    )
    cost = prices.cost(prices.find("openai/m"), prompt_tokens=1, completion_tokens=0)

    # 0.0000001 USD at 0.07 USD an OPG is 1428571428571.43 wei.
    assert cost.atomic == 1_428_571_428_572
    assert cost.quote() == {
        "cost_opg": "0.000001428571428572",
        "cost_usd": "0.0000001",
        "opg_price_usd": "0.07",
    }
    assert prices.find("anthropic/m") is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"opg_usd": 0.2}, "decimal strings"),
        ({"opg_usd": "0"}, "opg_usd is 0"),
        ({"opg_usd": "-1"}, "not negative"),
        ({"models": []}, "needs"),
        ({"models": {"gpt-5": {}}}, "provider/name"),
        ({"models": {"openai/gpt-5": {"context_tokens": 1.5}}}, "context_tokens"),
    ],
)
def test_price_list_that_cannot_be_exact_is_refused(change, complaint):
    with pytest.raises(PriceListInvalid, match=complaint):
        load_prices({"opg_usd": "0.2", "models": {}, **change})


def test_prices_come_from_a_file_when_one_is_given(tmp_path):
    price = {
        "context_tokens": 10,
        "max_output_tokens": 10,
        "input_usd_per_mtok": "0",
        "output_usd_per_mtok": "1000",
    }
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"opg_usd": "1", "models": {"openai/only": price}}))
    with (
        Devnet(prices=path) as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        response = payer.chat(chat_body(model="only"))
        assert payer.chat(chat_body(model="gpt-5")).status_code == 400
        records = net.close_sessions()

    assert records[0].amount_atomic == response.json()["usage"]["completion_tokens"] * 10**15


# --- other doors ------------------------------------------------------------------------------------------


def test_unpaid_port_serves_the_same_model_without_money(net, account):
    with (
        httpx.Client(base_url=net.unpaid_url, trust_env=False) as client,
        Payer(net.gateway_url, private_key=account.private_key) as payer,
    ):
        unpaid = client.post("/chat/completions", json=chat_body()).json()
        paid = payer.chat().json()
        stream = client.post(
            "/chat/completions", json=chat_body(stream=True, stream_options={"include_usage": True})
        ).text
        refused = client.post("/chat/completions", json={"model": "gpt-5"})

    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert unpaid["choices"] == paid["choices"]
    assert unpaid["usage"] == paid["usage"] == events[-1]["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert stream.endswith("data: [DONE]\n\n")
    assert refused.status_code == 400


def test_upstream_server_answers_for_models_that_have_no_price(net):
    with (
        Devnet(upstream=f"openai:{net.unpaid_url}") as reseller,
        Payer(reseller.gateway_url, private_key=reseller.account(approved=True).private_key) as payer,
    ):
        whole = payer.chat(chat_body(model="llama3.2"))
        streamed = payer.chat(chat_body(model="gpt-5", stream=True))
        records = reseller.close_sessions()

    assert "llama3.2" in whole.json()["choices"][0]["message"]["content"]
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert len(records) == 2
    assert all(record.amount_atomic > 0 for record in records)


def test_explorer_and_rpc_agree_about_a_transaction(net, client):
    block = client.post(
        "/rpc", json={"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["0x1", False]}
    ).json()["result"]
    tx_hash = block["transactions"][0]

    assert tx_hash in client.get(f"/explorer/tx/{tx_hash}").text
    assert client.get(f"/explorer/tx/0x{'00' * 32}").status_code == 404
    assert client.get("/blobs/nothing").status_code == 404
    assert client.get("/health").json()["status"] == "ok"


async def test_devnet_is_usable_from_async_tests(net):
    async with httpx.AsyncClient(base_url=net.gateway_url, trust_env=False) as client:
        answers = await asyncio.gather(*(client.get("/health") for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}


# --- beginning and end ------------------------------------------------------------------------------------


def test_closing_stops_every_thread_and_frees_the_port():
    before = devnet_threads()
    net = Devnet()
    net.start()
    assert len(devnet_threads()) == len(before) + 2
    port = urlsplit(net.gateway_url).port
    net.close()
    net.close()

    assert devnet_threads() == before
    with Devnet(port=port) as again:
        assert urlsplit(again.gateway_url).port == port


def test_failed_start_leaves_nothing_behind(tmp_path):
    before = devnet_threads()
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        with pytest.raises(ServerFailed, match="cannot be used"):
            Devnet(port=occupied.getsockname()[1]).start()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Devnet(network_file=tmp_path / "file" / "devnet.json").start()

    assert devnet_threads() == before


def test_closing_ends_streams_that_still_run_and_charges_what_they_said():
    net = Devnet(pace_s=0.2)
    net.start()
    try:
        with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
            headers = {"payment-signature": payer.payment()}
            body = chat_body("Tell me a long story about rivers, lakes and seas.", stream=True)
            with payer.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                next(response.iter_lines())
                net.close()
    finally:
        net.close()

    (record,) = net.settlements
    assert record.success
    assert record.amount_atomic > 0


def test_nothing_that_was_said_or_signed_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    secret = "the-cat-is-called-Mitzi"
    with (
        Devnet() as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        payment = payer.payment()
        session = payer.chat(chat_body(secret), payment=payment).headers["x-upto-session"]
        payer.chat(chat_body(secret, stream=True, temperature="hot"), session=session)
        payer.chat(chat_body(secret), session="dead")
    signature = decode(payment)["payload"]["signature"]

    ours = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] not in CLIENTS]

    assert ours
    for told in (secret, session, signature, signature[2:], payment, payer.private_key):
        assert not [message for message in ours if told in message]


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, opengradient_devnet as devnet\n"
        "heavy = {'starlette', 'uvicorn', 'eth', 'httpx', 'cryptography', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(devnet.__all__) <= set(dir(devnet)), dir(devnet)\n"
        "devnet.Devnet, devnet.Account, devnet.Faults\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=False)

    assert done.returncode == 0, done.stderr


def test_what_the_challenge_advertises_is_what_the_facilitator_supports(net, client):
    challenge = decode(client.post("/v1/chat/completions", json=chat_body()).headers["payment-required"])

    assert challenge["extensions"]
    assert set(challenge["extensions"]) <= set(client.get("/facilitator/supported").json()["extensions"])
