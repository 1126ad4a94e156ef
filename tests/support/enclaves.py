"""A TEE registry of the test's own, on a chain of its own, and TLS servers that are not what was registered."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socket import create_server, socket

from opengradient_devnet.chain.accounts import Account, new_account
from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.contracts import TEE_REGISTRY, contract
from opengradient_devnet.gateway.proofs.certificates import Certificate, make_certificate
from opengradient_devnet.gateway.proofs.tee import keccak
from opengradient_x402.networks import ChainContract
from support import node as rpc_node

CHAIN_ID = 10740
PAYEE = "0x" + "77" * 20
NO_OHTTP = (0, 0, 0, 0, b"", b"", 0)


@dataclass
class Registry:
    """Write access to a registry that lists nobody at first."""

    chain: Chain
    node: rpc_node.Node
    owner: Account
    _keys: list[bytes] = field(default_factory=list)

    @property
    def contract(self) -> ChainContract:
        return ChainContract(address=TEE_REGISTRY, rpc_url=self.node.url, chain_id=CHAIN_ID)

    def register(
        self,
        endpoint: str,
        certificate_der: bytes,
        *,
        payment_address: str = PAYEE,
        public_key_der: bytes | None = None,
        pcr_hash: bytes = bytes(32),
    ) -> str:
        """Lists an enclave, or changes the one with this key; gives back its id."""
        key = public_key_der or f"enclave {len(self._keys)}".encode()
        values = (payment_address, endpoint, key, certificate_der, pcr_hash, 0, NO_OHTTP)
        self._send("registerTEE", *values)
        if key not in self._keys:
            self._keys.append(key)
        return "0x" + keccak(key).hex()

    def clear(self) -> None:
        """Disables everybody; their keys are used again, since the contract holds 16."""
        for key in self._keys:
            self._send("setEnabled", keccak(key), False)
        self._keys.clear()
        self.node.requests.clear()
        self.node.misbehave = lambda method, params, number: None

    def _send(self, function: str, *values: object) -> None:
        data = contract("TEERegistry").encode(function, *values)
        assert self.chain.send(self.owner, to=TEE_REGISTRY, data=data)["status"] == "0x1"


@contextmanager
def registry() -> Iterator[Registry]:
    """An empty registry behind a node on a real socket."""
    chain = PyEvmChain(chain_id=CHAIN_ID)
    owner = new_account()
    chain.fund(owner.address, native_wei=10**18)
    try:
        with rpc_node.serving(chain) as served:
            yield Registry(chain=chain, node=served, owner=owner)
    finally:
        chain.close()


@dataclass
class Impostor:
    """A TLS server that speaks no HTTP; `heard` is what clients said after the handshake."""

    url: str
    certificate: Certificate
    connections: int = 0
    heard: list[bytes] = field(default_factory=list)


@contextmanager
def impostor(context: ssl.SSLContext | None = None) -> Iterator[Impostor]:
    """Answers on a port of its own with a certificate of its own, and hangs up after the first words."""
    certificate = make_certificate()
    listener = create_server(("127.0.0.1", 0))
    server = Impostor(url=f"https://127.0.0.1:{listener.getsockname()[1]}", certificate=certificate)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            _converse(connection, context or certificate.server_context, server)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(2)
        listener.close()
        thread.join(60)


def _converse(connection: socket, context: ssl.SSLContext, server: Impostor) -> None:
    server.connections += 1
    connection.settimeout(5)
    with suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as line:
        if words := line.recv(65536):
            server.heard.append(words)


def dead_url() -> str:
    """An https address at which nobody listens."""
    with create_server(("127.0.0.1", 0)) as listener:
        return f"https://127.0.0.1:{listener.getsockname()[1]}"
