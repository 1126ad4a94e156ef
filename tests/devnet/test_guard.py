"""Web pages and the devnet: a page that a browser on this machine shows can neither read it nor make it do anything."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.chain.methods import MAX_LOGS
from opengradient_devnet.faults import SettleAtCap
from support.payer import Payer, chat_body

EVIL = "https://evil.example"
JSON = {"content-type": "application/json"}
RPC = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}
ENDLESS = "0x5b600056"  # JUMPDEST, PUSH1 0, JUMP


pytestmark = pytest.mark.devnet(fault_route=True)


@pytest.fixture
def client(net):
    with httpx.Client(base_url=net.gateway_url, trust_env=False, timeout=20) as client:
        yield client


def rpc(client: httpx.Client, method: str, *params) -> dict:
    return client.post("/rpc", json={**RPC, "method": method, "params": list(params)}).json()


def is_unread(response: httpx.Response) -> bool:
    """Nothing of the answer may be read by a page: neither its body, nor because CORS would allow it."""
    allowed = [name for name in response.headers if name.startswith("access-control-")]
    return response.status_code == 403 and not allowed and "private_key" not in response.text


STATE_CHANGES = [
    ("/accounts", {"approved": True}),
    ("/faucet", {"address": "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"}),
    ("/faults", {"fault": "settle_at_cap"}),
    ("/reorganise", {"depth": 1, "lose": "all"}),
    ("/rpc", {**RPC, "method": "evm_mine"}),
    ("/facilitator/settle", {}),
    ("/v1/chat/completions", chat_body()),
]


# --- pages with a name of their own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "0.0.0.0", "localhost.evil.example", "10.0.0.1", "a@127.0.0.1", "[::]"]
)
@pytest.mark.parametrize("path", ["/network", "/explorer", "/v1/models", "/blobs/x"])
def test_page_whose_name_points_here_reads_nothing(client, host, path):
    assert is_unread(client.get(path, headers={"host": f"{host}:{client.base_url.port}"}))


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("target", ["http://evil.example/accounts", "evil.example:80", "*"])
def test_a_request_that_names_another_host_in_its_first_line_is_refused(net, method, target):
    url = urlsplit(net.gateway_url)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {url.netloc}", "Content-Type: application/json"]
    with socket.create_connection((url.hostname, url.port), timeout=10) as line:
        line.sendall("\r\n".join([*lines, "Content-Length: 2", "Connection: close", "", "{}"]).encode())
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"private_key" not in answer


@pytest.mark.parametrize("path", ["/accounts", "/faucet"])
@pytest.mark.parametrize("amount", ["1000000000000000000000000", 10**30])
def test_a_wish_for_more_than_the_faucet_has_time_for_is_refused_at_once(net, client, path, amount):
    wish = {"opg": amount, "address": net.account(opg="0").address}
    answer = client.post(path, json=wish)
    assert (answer.status_code, "at most 100000000 OPG" in answer.text) == (400, True)
    assert rpc(client, "eth_blockNumber")["result"]


@pytest.mark.parametrize(("path", "body"), STATE_CHANGES, ids=[path for path, _ in STATE_CHANGES])
def test_page_whose_name_points_here_changes_nothing(net, client, path, body):
    before = net.chain.rpc("eth_getBlockByNumber", ["latest", False])["transactions"]
    struck = len(net.faults.struck)
    assert is_unread(client.post(path, json=body, headers={"host": "evil.example"}))
    assert not [fault for fault in net.faults.struck[struck:] if isinstance(fault, SettleAtCap)]
    assert net.chain.rpc("eth_getBlockByNumber", ["latest", False])["transactions"] in (before, [])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "[::1]"])
def test_loopback_is_served_under_each_of_its_names_and_behind_another_port(client, host):
    for port in ("", f":{client.base_url.port}", ":9"):
        assert client.get("/network", headers={"host": host + port}).status_code == 200


def test_request_without_a_host_or_with_two_is_refused(net):
    address = urlsplit(net.gateway_url)
    for hosts in ("", "Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        version = "1.1" if hosts else "1.0"
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            connection.sendall(f"GET /network HTTP/{version}\r\n{hosts}\r\n".encode())
            status = connection.recv(64).split()[1]
        assert status in (b"400", b"403")


# --- pages that send requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:3000", "http://127.0.0.1:1", "https://127.0.0.1"])
@pytest.mark.parametrize(("path", "body"), STATE_CHANGES, ids=[path for path, _ in STATE_CHANGES])
def test_request_of_a_foreign_page_is_refused_whatever_its_type(client, origin, path, body):
    for content_type in ("application/json", "text/plain"):
        headers = {"origin": origin, "content-type": content_type}
        assert is_unread(client.post(path, content=json.dumps(body), headers=headers))


@pytest.mark.parametrize(("path", "_body"), STATE_CHANGES, ids=[path for path, _ in STATE_CHANGES])
def test_preflight_of_a_foreign_page_allows_nothing(client, path, _body):
    asked = {
        "origin": EVIL,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-fault-token",
        "access-control-request-private-network": "true",
    }
    assert is_unread(client.options(path, headers=asked))


@pytest.mark.parametrize("path", ["/v1/models", "/network", "/explorer", "/facilitator/supported"])
def test_image_or_frame_of_a_foreign_page_gets_nothing_and_a_followed_link_gets_its_page(client, path):
    for site in ("cross-site", "same-site"):
        embedded = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        assert is_unread(client.get(path, headers=embedded))
        framed = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
        assert is_unread(client.get(path, headers=framed))
        followed = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert client.get(path, headers=followed).status_code == 200
        assert is_unread(client.post("/accounts", json={}, headers=followed))


def test_page_of_the_devnet_itself_may_use_it(client):
    own = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert client.post("/rpc", json=RPC, headers=own).status_code == 200


def test_upgrade_to_a_websocket_is_no_way_in(client):
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade |= {"sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    assert is_unread(client.get("/rpc", headers={**upgrade, "origin": EVIL}))
    assert client.get("/rpc", headers=upgrade).status_code == 405


def test_unpaid_model_and_https_site_are_guarded_too(net):
    body, ask = json.dumps(chat_body()), {"trust_env": False, "verify": False}
    for url in (f"{net.unpaid_url}/chat/completions", f"{net.https_gateway_url}/v1/chat/completions"):
        assert is_unread(httpx.post(url, content=body, headers={**JSON, "origin": EVIL}, **ask))
        assert is_unread(httpx.post(url, content=body, headers={**JSON, "host": "evil.example"}, **ask))
    assert httpx.post(f"{net.unpaid_url}/chat/completions", content=body, **ask).status_code == 415
    assert httpx.post(f"{net.unpaid_url}/chat/completions", content=body, headers=JSON, **ask).status_code == 200
    own = {**JSON, "origin": net.https_gateway_url}
    assert httpx.post(f"{net.https_gateway_url}/rpc", json=RPC, headers=own, **ask).status_code == 200


# --- what is sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "text/json"])
@pytest.mark.parametrize("path", ["/accounts", "/faucet", "/faults", "/rpc", "/facilitator/verify"])
def test_state_is_changed_by_json_only(client, path, content_type):
    response = client.post(path, content=b"{}", headers={"content-type": content_type} if content_type else {})

    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["error"]


@pytest.mark.parametrize("path", ["/accounts", "/rpc", "/faults", "/facilitator/settle_data"])
def test_body_that_is_too_long_is_refused_with_its_limit(client, path):
    size = 5 * 2**20

    def pieces():
        yield b" " * size

    for body in (b" " * size, pieces()):  # with its length, and in chunks
        response = client.post(path, content=body, headers=JSON)
        assert response.status_code == 413
        assert "bytes" in response.json()["error"]


def test_faults_are_controlled_with_the_token_only(net, client):
    wish = {"fault": "answer_status", "members": {"status": 503}}
    for headers in ({}, {"x-fault-token": ""}, {"x-fault-token": "guess"}, {"x-fault-token": "é".encode()}):
        assert client.get("/faults", headers=headers).status_code == 403
        assert client.post("/faults", json=wish, headers=headers).status_code == 403
        assert client.delete("/faults", headers=headers).status_code == 403
        refused = client.post("/reorganise", json={"depth": 1}, headers=headers)
        assert (refused.status_code, "devnet.fault_token" in refused.text) == (403, True)

    assert len(net.fault_token) > 40
    assert client.post("/faults", json=wish, headers={"x-fault-token": net.fault_token}).status_code == 200
    assert client.delete("/faults", headers={"x-fault-token": net.fault_token}).status_code == 200


def test_token_is_ones_own_if_one_is_given_and_never_empty():
    assert Devnet().fault_token is None
    assert Devnet(fault_token="mine").fault_token == "mine"
    assert Devnet(fault_route=True).fault_token != Devnet(fault_route=True).fault_token
    with pytest.raises(ValueError, match="empty"):
        Devnet(fault_token="")


# --- what a call may cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eth_call", "eth_estimateGas"])
def test_endless_call_ends_and_the_chain_goes_on(client, method):
    client.timeout = 60  # others may use the processor
    begun = time.process_time()
    answer = rpc(client, method, {"data": ENDLESS, "gas": "0x" + "f" * 64})

    assert "aborted" in answer["error"]["message"]
    assert time.process_time() - begun < 4
    assert "result" in rpc(client, "eth_blockNumber")


def test_call_has_at_most_the_gas_of_a_block(client):
    told = int(rpc(client, "eth_call", {"data": "0x5a60005260206000f3", "gas": hex(2**48)})["result"], 16)  # GAS

    assert told < 30_000_000


def test_huge_calldata_is_too_much_gas_and_no_work(client):
    answer = rpc(client, "eth_call", {"to": "0x" + "11" * 20, "data": "0x" + "ff" * 2_000_000})

    assert "error" in answer


def test_more_logs_than_a_public_node_gives_are_refused(net, client, monkeypatch):
    monkeypatch.setattr("opengradient_devnet.chain.methods.MAX_LOGS", 2)
    for _ in range(2):
        net.account(approved=True)
    answer = rpc(client, "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"})

    assert answer["error"] == {"code": -32005, "message": "query returned more than 2 results"}
    assert MAX_LOGS == 10_000
    assert rpc(client, "eth_feeHistory", "0x400", "latest", [50] * 1000)["error"]["code"] == -32602


def test_batch_costs_no_more_than_its_answer_may_be_long(client, monkeypatch):
    monkeypatch.setattr("opengradient_devnet.chain.rpc.MAX_ANSWER_BYTES", 2000)
    batch = [{**RPC, "id": number, "method": "eth_getBlockByNumber", "params": ["0x0", False]} for number in range(9)]
    answers = client.post("/rpc", json=batch).json()

    assert len(answers) < len(batch)
    assert answers[-1]["error"]["code"] == -32003
    assert "result" in answers[0]


def test_program_that_pays_notices_nothing(net):
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        assert payer.chat().status_code == 200
