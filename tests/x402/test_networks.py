from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint, UnknownNetwork
from opengradient_x402.networks import PRESETS, is_loopback, load_network


def description(**changes: Any) -> dict[str, Any]:
    return {
        "name": "devnet",
        "chain_id": 31402,
        "network": "eip155:31402",
        "rpc_url": "http://127.0.0.1:9/rpc",
        "gateway_url": "http://127.0.0.1:9",
        "https_gateway_url": "https://127.0.0.1:10",
        "asset": {
            "address": "0xfbc2051ae2265686a469421b2c5a2d5462fbf5eb",
            "symbol": "OPG",
            "decimals": 18,
            "name": "OpenGradient",
            "version": "1",
        },
        "payees": ["0x9deebb5d1b22e4a6e027977cead13893a7e4cc1a"],
        "facilitators": ["0x70997970c51812dc3a010c7d01b50e0d17dc79c8"],
        "registry": {
            "address": "0x703cb174aeadb35d611858369b4b1111dc9abda6",
            "rpc_url": "http://127.0.0.1:9/rpc",
            "chain_id": 31402,
        },
        "relay": None,
        "session_idle_s": 100,
        **changes,
    }


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = self.server.answers[self.path]  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                return  # the client stops reading what is too long

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.answers = {}  # type: ignore[attr-defined]
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def test_presets_load_by_name_and_their_addresses_are_checksummed():
    assert load_network("base").caip2 == "eip155:8453"
    assert load_network("base-sepolia").caip2 == "eip155:84532"
    for network in PRESETS.values():
        contracts = [network.asset.address, network.permit2, network.upto_proxy, network.exact_proxy]
        registries = [network.registry.address] if network.registry is not None else []
        for address in [*contracts, *registries, *network.payees]:
            assert checksum_address(address.lower()) == address


@pytest.mark.parametrize(
    ("name", "chain_id", "domain"), [("base-usdc", 8453, "USD Coin"), ("base-sepolia-usdc", 84532, "USDC")]
)
def test_a_chain_can_be_paid_in_usdc_at_a_gateway_of_the_users_own(name, chain_id, domain):
    network = load_network(name)
    assert (network.chain_id, network.given_as) == (chain_id, name)
    assert (network.asset.symbol, network.asset.decimals, network.asset.name, network.asset.version) == (
        "USDC",
        6,
        domain,
        "2",
    )
    assert (network.payees, network.registry, network.asset_usd) == (frozenset(), None, "1")
    assert network.gateway_at("https://gateway.example") == "https://gateway.example"
    with pytest.raises(ConfigurationError, match=rf"{name} has no gateway of its own.*base_url.*payees"):
        network.gateway_at(None)


def test_a_network_loads_as_itself():
    assert load_network(PRESETS["base"]) is PRESETS["base"]


def test_a_network_file_is_read_and_its_addresses_are_checksummed(tmp_path):
    file = tmp_path / "net.json"
    file.write_text(json.dumps(description()))
    network = load_network(str(file))
    assert network == load_network(file)
    assert network.chain_id == 31402
    assert network.asset.address == "0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB"
    assert network.payees == {"0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"}
    assert network.registry is not None
    assert network.relay is None
    assert network.session_idle_s == 100
    assert network.upto_proxy == PRESETS["base"].upto_proxy


def test_devnet_is_the_file_in_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UnknownNetwork, match="opengradient-devnet"):
        load_network("devnet")
    (tmp_path / "opengradient").mkdir()
    (tmp_path / "opengradient" / "devnet.json").write_text(json.dumps(description()))
    assert load_network("devnet").name == "devnet"


def test_an_unknown_name_lists_what_exists_and_how_to_start_a_devnet():
    with pytest.raises(
        UnknownNetwork, match=r"Known: base, base-sepolia, base-usdc, base-sepolia-usdc, devnet.*opengradient-devnet"
    ):
        load_network("bass")


def test_a_missing_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(UnknownNetwork, match=r"nowhere\.json"):
        load_network(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        "null",
        json.dumps({"name": "x"}),
        json.dumps(description(chain_id="31402")),
        json.dumps(description(chain_id=True)),
        json.dumps(description(network="eip155:1")),
        json.dumps(description(payees=["0x12"])),
        json.dumps(description(payees=None)),
        json.dumps(description(asset=[])),
        json.dumps(description(session_idle_s="soon")),
        " " * (256 * 1024 + 1),
    ],
    ids=range(13),
)
def test_a_file_that_describes_no_network_is_refused(tmp_path, content):
    file = tmp_path / "net.json"
    file.write_text(content)
    with pytest.raises(UnknownNetwork, match="is not a network description"):
        load_network(file)


def test_only_a_network_that_asks_for_them_gets_ids_of_calls(tmp_path):
    assert all(network.call_id_header is None for network in PRESETS.values())
    file = tmp_path / "net.json"
    file.write_text(json.dumps({**description(), "call_id_header": "x-call-id"}))
    assert load_network(file).call_id_header == "x-call-id"


@pytest.mark.parametrize(
    "name", ["authorization", "x-payment", "x-upto-session", "x-settlement-type", "x-a\r\nb: c", 7]
)
def test_ids_of_calls_are_sent_in_no_header_that_says_something_else(tmp_path, name):
    file = tmp_path / "net.json"
    file.write_text(json.dumps({**description(), "call_id_header": name}))
    with pytest.raises(UnknownNetwork, match="call_id_header"):
        load_network(file)


def test_a_description_is_fetched_from_a_loopback_url(server):
    server.answers["/network"] = (200, json.dumps(description()).encode())
    assert load_network(f"{server.url}/network").chain_id == 31402


def test_answers_that_are_no_description_are_refused(server):
    server.answers = {"/404": (404, b""), "/302": (302, b""), "/long": (200, b" " * 2_000_000)}
    for path, reason in (
        ("/404", "answered 404"),
        ("/302", "answered 302"),
        ("/long", "more than 262144 bytes"),
    ):
        with pytest.raises(UnknownNetwork, match=reason):
            load_network(server.url + path)


def test_what_a_url_of_a_description_holds_beside_its_path_is_in_no_error_and_no_log_line(server, caplog):
    caplog.set_level("DEBUG")
    server.answers = {"/404?token=SECRET": (404, b""), "/?token=SECRET": (200, b"[]")}
    for url in (
        f"{server.url}/404?token=SECRET",
        f"{server.url}/?token=SECRET",
        f"{server.url}/404?token=SECRET".replace("http://", "http://me:SECRET@"),
        "http://me:SECRET@127.0.0.1:1/network",
        "http://me:SECRET@127.0.0.1:99999/network",
    ):
        with pytest.raises(UnknownNetwork, match=r"http://127\.0\.0\.1") as caught:
            load_network(url)
        assert "SECRET" not in str(caught.value)
    assert "HTTP Request" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_silent_url_is_an_error_that_asks_for_the_devnet():
    with pytest.raises(UnknownNetwork, match="Is the devnet running"):
        load_network("http://127.0.0.1:1/network")


@pytest.mark.parametrize("url", ["http://example.com/net.json", "ftp://127.0.0.1/net.json", "file:///etc/passwd"])
def test_a_description_is_never_fetched_over_an_open_line(url):
    with pytest.raises(InsecureEndpoint, match="name other payees"):
        load_network(url)


def test_loopback_is_this_machine_only():
    for host in ("localhost", "gateway.localhost", "127.0.0.1", "127.8.8.8", "::1"):
        assert is_loopback(host)
    for host in (
        None,
        "",
        "10.0.0.1",
        "0.0.0.0",
        "localhost.example.com",
        "169.254.169.254",
        "127.0.0.1.nip.io",
    ):
        assert not is_loopback(host)
