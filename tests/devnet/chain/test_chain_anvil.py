"""The anvil engine: finding the binary, its command line, its death; and (interop) the real thing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opengradient_devnet.chain.anvil import AnvilChain, AnvilFailed, AnvilNotFound, arguments, find_anvil
from opengradient_devnet.chain.chain import RpcError
from opengradient_devnet.contracts import ADDRESSES, OPG, contract
from opengradient_devnet.facilitator.facilitator import Facilitator
from support.chain_parties import funded_party, permit2_payment, requirements

NPM_PACKAGE = "@foundry-rs/anvil-linux-amd64@1.7.1"
TOKEN = contract("OPG")

# It prints as anvil does, answers every method, and writes down what it was asked.
FAKE_ANVIL = """#!{python}
import http.server, json, sys, time
log = open({log!r}, "a", buffering=1)
print(json.dumps(sys.argv[1:]), file=log)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print(json.dumps([request["method"], request["params"]]), file=log)
        answer = {{"jsonrpc": "2.0", "id": request["id"], "result": "0x0"}}
        if request["method"] == "eth_getCode":
            del answer["result"]
            error = {{"code": 3, "message": "execution reverted: custom error", "data": "0xfe64b4c7"}}
            answer["error"] = error
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("Listening on 127.0.0.1:%d" % server.server_address[1], flush=True)
server.serve_forever()
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def fake_log(tmp_path):
    return tmp_path / "asked"


@pytest.fixture
def fake(tmp_path, fake_log):
    return script(tmp_path / "anvil", FAKE_ANVIL.format(python=sys.executable, log=str(fake_log)))


def asked(log):
    return [line.strip() for line in log.read_text().splitlines()]


def test_a_given_binary_is_taken_before_one_on_path(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_anvil() == fake
    other = script(tmp_path / "other", "")
    assert find_anvil(other) == other


def test_foundrys_own_folder_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".foundry" / "bin").mkdir(parents=True)
    installed = script(tmp_path / ".foundry" / "bin" / "anvil", "")
    assert find_anvil() == installed


def test_without_a_binary_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AnvilNotFound, match=r"npm install .* --engine pyevm"):
        AnvilChain()
    with pytest.raises(AnvilNotFound, match="There is no anvil at"):
        AnvilChain(binary=tmp_path / "nowhere")


def test_the_command_line_binds_loopback_and_makes_no_well_known_accounts():
    *command, last = arguments(Path("/bin/anvil"), chain_id=31402)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == "/bin/anvil"
    assert (options["--host"], options["--port"], options["--chain-id"]) == ("127.0.0.1", "0", "31402")
    assert options["--accounts"] == "0"
    assert last == "--no-cors", "web pages could read what it answers"


def test_the_contracts_are_placed_and_a_block_is_mined_at_the_start(fake, fake_log):
    chain = AnvilChain(binary=fake)
    chain.close()
    lines = asked(fake_log)
    for name, address in ADDRESSES.items():
        assert any(address in line and contract(name).runtime.hex() in line for line in lines)
    assert lines[-1] == '["evm_mine", []]'


def test_a_stale_block_is_replaced_before_a_call_tells_the_time(fake, fake_log, monkeypatch):
    chain = AnvilChain(binary=fake)
    try:
        started = len(asked(fake_log))
        chain.rpc("eth_call", [{}])
        now = time.monotonic()
        monkeypatch.setattr("opengradient_devnet.chain.anvil.time.monotonic", lambda: now + 5)
        chain.rpc("eth_getBalance", [])
        chain.rpc("eth_call", [{}])
        methods = [line.split('"')[1] for line in asked(fake_log)[started:]]
        assert methods == ["eth_call", "eth_getBalance", "evm_mine", "eth_call"]
    finally:
        chain.close()


def test_reverts_carry_the_names_of_custom_errors(fake):
    chain = AnvilChain(binary=fake)
    try:
        with pytest.raises(RpcError, match=r"AmountExceedsPermitted\(\)") as reverted:
            chain.code(OPG)
        assert (reverted.value.code, reverted.value.data) == (3, "0xfe64b4c7")
    finally:
        chain.close()


def test_closing_ends_the_process_and_answers_no_more(fake):
    chain = AnvilChain(binary=fake)
    pid = chain._process.pid
    chain.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RpcError, match="not running"):
        chain.rpc("eth_chainId", [])


def test_a_binary_that_does_not_listen_is_reported_with_its_words(tmp_path):
    broken = script(tmp_path / "anvil", "#!/bin/sh\necho 'error: unexpected argument'\n")
    with pytest.raises(AnvilFailed, match="unexpected argument"):
        AnvilChain(binary=broken)


@pytest.fixture(scope="module")
def real_anvil(tmp_path_factory):
    """anvil from PATH or, where there is none, from npm."""
    try:
        return find_anvil()
    except AnvilNotFound:
        folder = tmp_path_factory.mktemp("npm")
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, NPM_PACKAGE], check=True)
        return folder / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"


@pytest.mark.interop
def test_the_real_anvil_settles_payments_and_keeps_time(real_anvil):
    chain = AnvilChain(binary=real_anvil, chain_id=31402)
    try:
        payer, account = funded_party(chain, approved=True), funded_party(chain, opg_atomic=0)
        facilitator = Facilitator(chain, account=account)
        payee = "0x" + "44" * 20
        for scheme in ("upto", "exact"):
            terms = requirements(chain, payee=payee, facilitator=account.address, scheme=scheme)
            payment = permit2_payment(chain, payer, terms)
            before = chain.token_balance(payee)
            assert facilitator.verify(payment, terms).is_valid
            assert facilitator.settle(payment, terms).success
            assert chain.token_balance(payee) - before == 10**17
            assert facilitator.settle(payment, terms).reason == "permit2_invalid_nonce"
        for _ in range(300):
            chain.send(payer, to=OPG, data=TOKEN.encode("approve", OPG, 1))
        time.sleep(3)
        head = chain.rpc("eth_getBlockByNumber", ["latest", False])
        assert abs(int(head["timestamp"], 16) - time.time()) < 2
        assert abs(chain.now_s() - time.time()) < 2
    finally:
        chain.close()


@pytest.mark.interop
def test_the_real_anvil_reorganises_with_and_without_its_transactions(real_anvil):
    chain = AnvilChain(binary=real_anvil, chain_id=31402)
    try:
        party = funded_party(chain, opg_atomic=10**19)
        data = TOKEN.encode("transfer", "0x" + "33" * 20, 10**18)
        for lose, left in [((), 9), ("all", 9)]:
            sent = chain.send(party, to=OPG, data=data)
            lost = chain.reorganise(1, lose=lose)
            kept = chain.rpc("eth_getTransactionReceipt", [sent["transactionHash"]])
            assert lost == ([sent["transactionHash"]] if lose else [])
            assert (kept is None) == bool(lose)
            assert kept is None or kept["blockHash"] != sent["blockHash"]
            assert chain.token_balance(party.address) == left * 10**18
    finally:
        chain.close()
