"""The same chain on anvil: starts the program, puts the contracts in, and keeps its clock right.

anvil must be installed already. Everything above JSON-RPC is written once, in `chain.Chain`.

anvil gives calls the time of the last block (0 on a fresh chain). So a block is mined at the start, and again before
anything that reads the time when the last block is old.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from opengradient_devnet.chain.chain import FAUCET_WEI, PRIVATE_CHAIN_ID, Chain, RpcError, new_faucet_key
from opengradient_devnet.contracts import ADDRESSES, contract, revert_reason

START_TIMEOUT_S = 15.0
REQUEST_TIMEOUT_S = 30.0
STALE_AFTER_S = 1.0
EXECUTION_REVERTED = 3
# Calls and head blocks tell the time; a transaction is mined at the time of now by itself.
_TELLS_THE_TIME = frozenset({"eth_call", "eth_estimateGas", "eth_blockNumber", "eth_getBlockByNumber"})
_MINES = frozenset({"eth_sendRawTransaction", "eth_sendTransaction", "evm_mine"})
_LISTENING = re.compile(r"Listening on 127\.0\.0\.1:(\d+)")
_FOUNDRY_BIN = Path("~/.foundry/bin/anvil")


class AnvilNotFound(RuntimeError):
    """There is no anvil binary to run."""


class AnvilFailed(RuntimeError):
    """anvil was found, and did not start or did not answer."""


def find_anvil(binary: Path | None = None) -> Path:
    """The anvil to run: the given one, one on PATH, or the one that foundryup installs."""
    if binary is not None:
        if not binary.is_file():
            raise AnvilNotFound(f"There is no anvil at {binary}. Give the path of the binary itself.")
        return binary
    on_path = shutil.which("anvil")
    if on_path is not None:
        return Path(on_path)
    installed = _FOUNDRY_BIN.expanduser()
    if installed.is_file():
        return installed
    raise AnvilNotFound(
        f"No anvil on PATH or at {_FOUNDRY_BIN}. Install it (`npm install -g @foundry-rs/anvil`, or foundryup "
        "from https://getfoundry.sh), or use the built-in engine: --engine pyevm needs nothing."
    )


def arguments(binary: Path, *, chain_id: int) -> list[str]:
    """The command line. Port 0 lets the system choose; no account gets a well-known key."""
    options = {"--host": "127.0.0.1", "--port": "0", "--chain-id": str(chain_id), "--accounts": "0"}
    options |= {"--hardfork": "cancun", "--gas-limit": "30000000", "--order": "fifo"}
    # No web page may read what it answers, and nobody else needs its port.
    return [str(binary), *itertools.chain.from_iterable(options.items()), "--no-cors"]


class AnvilChain(Chain):
    """A chain in an anvil process of its own. Close it, or the process stays."""

    def __init__(self, *, chain_id: int = PRIVATE_CHAIN_ID, binary: Path | None = None) -> None:
        super().__init__(chain_id=chain_id, faucet=new_faucet_key())
        command = arguments(find_anvil(binary), chain_id=chain_id)
        self._process = subprocess.Popen(  # noqa: S603  # the user's own binary, arguments made above
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        )
        self._output = _Output(self._process)
        self._ids = itertools.count(1)
        self._clock_lock = threading.Lock()
        self._mined_at_s = float("-inf")
        self._client: httpx.Client | None = None
        try:
            url = self._wait_until_listening()
            self._client = httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S, trust_env=False)
            self._place_contracts()
            self._keep_up()
        except BaseException:
            self.close()
            raise

    def _wait_until_listening(self) -> str:
        self._output.listening.wait(START_TIMEOUT_S)
        ports = [match.group(1) for match in map(_LISTENING.search, self._output.lines) if match]
        if not ports:
            said = " ".join(self._output.lines[-5:]).strip() or "nothing"
            raise AnvilFailed(f"anvil did not listen within {START_TIMEOUT_S:.0f} s; it said: {said}")
        return f"http://127.0.0.1:{ports[0]}"

    def _place_contracts(self) -> None:
        for name, address in ADDRESSES.items():
            self._ask("anvil_setCode", [address, "0x" + contract(name).runtime.hex()])
            self._ask("anvil_setNonce", [address, "0x1"])
        self._ask("anvil_setBalance", [self.faucet.address, hex(FAUCET_WEI)])

    def rpc(self, method: str, params: list[Any]) -> Any:
        if method in _TELLS_THE_TIME:
            self._keep_up()
        result = self._ask(method, params)
        if method in _MINES:
            with self._clock_lock:
                self._mined_at_s = time.monotonic()
        return result

    def _keep_up(self) -> None:
        with self._clock_lock:
            if time.monotonic() - self._mined_at_s < STALE_AFTER_S:
                return
            self._ask("evm_mine", [])
            self._mined_at_s = time.monotonic()

    def _ask(self, method: str, params: list[Any]) -> Any:
        if self._client is None:
            raise RpcError(-32000, "anvil is not running")
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        try:
            answer = self._client.post("/", json=request).json()
        except (httpx.HTTPError, ValueError) as exc:
            raise RpcError(-32000, f"anvil did not answer {method}: {exc}") from exc
        error = answer.get("error")
        if error is not None:
            raise _rpc_error(error)
        return answer["result"]

    def rewind(self, block_count: int) -> None:
        self._ask("anvil_rollback", [block_count])

    def now_s(self) -> int:
        block = self._ask("eth_getBlockByNumber", ["latest", False])
        return max(int(time.time()), int(block["timestamp"], 16))

    def advance(self, seconds: float) -> None:
        """Put the chain's clock ahead, and mine a block that shows it."""
        self._ask("evm_increaseTime", [int(seconds)])
        self._ask("evm_mine", [])

    def close(self) -> None:
        """End the process; waits until it is gone."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.join()


def _rpc_error(error: dict[str, Any]) -> RpcError:
    code, message, data = error.get("code", -32000), error.get("message", ""), error.get("data")
    if code == EXECUTION_REVERTED and isinstance(data, str):
        # anvil knows no names of custom errors; the facilitator's reason codes are chosen by name.
        message = f"execution reverted: {revert_reason(bytes.fromhex(data[2:]))}"
    return RpcError(code, message, data=data)


class _Output:
    """What anvil prints, read as long as it runs (a full pipe would stop it); only the beginning is kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self.listening = threading.Event()
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True, name="anvil-output")
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if not self.listening.is_set():
                self.lines.append(line)
                if _LISTENING.search(line):
                    self.listening.set()
        self.listening.set()

    def join(self) -> None:
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
