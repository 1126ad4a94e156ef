"""A devnet in a child process: started, waited for, and never left behind.

The product knows the devnet by its command line and its network file only; it imports none of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from opengradient_x402.errors import ConfigurationError

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0


class DevnetProcess:
    """`with DevnetProcess() as devnet:` starts it; `devnet.network` (a dict) waits until it is up.

    The child sits in its own process group, so that Ctrl-C reaches only the parent, which then stops it in
    order (open sessions settle first). If the parent is killed, the child sees its standard input close.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="opengradient-devnet-")
        self._process: subprocess.Popen[bytes] | None = None
        self._network: dict[str, Any] | None = None
        self.network_file = Path(self._folder.name) / "network.json"

    def __enter__(self) -> Self:
        if find_spec("opengradient_devnet") is None or find_spec("eth") is None:
            raise ConfigurationError(
                "The embedded network is not installed. Nothing was started. "
                "Install it: pip install 'opengradient-integrations[devnet]'"
            )
        log = (Path(self._folder.name) / "log").open("wb")
        self._process = subprocess.Popen(  # noqa: S603  (our own module, by this interpreter)
            [
                sys.executable,
                "-m",
                "opengradient_devnet",
                "--port=0",
                f"--network-file={self.network_file}",
                "--exit-with-parent",
                *self._arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        return self

    @property
    def network(self) -> dict[str, Any]:
        """The network's description; waits until the child has written it. Raises ConfigurationError."""
        if self._network is None:
            self._network = self._wait_for_network()
        return self._network

    @property
    def network_url(self) -> str:
        """Where the network's description is served; waits as `network` does."""
        return f"{self.network['gateway_url']}/network"

    def _wait_for_network(self) -> dict[str, Any]:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if self.network_file.exists():
                network: dict[str, Any] = json.loads(self.network_file.read_text())
                return network
            time.sleep(0.02)
        said = (Path(self._folder.name) / "log").read_text(errors="replace").strip()[-2000:]
        raise ConfigurationError(
            f"The embedded network did not start. Nothing was paid. It said:\n{said or '(nothing)'}"
        )

    def stop(self) -> None:
        """Ends the child: with SIGTERM first, then with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def __exit__(self, *_: object) -> None:
        self.stop()
