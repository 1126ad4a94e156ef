"""Connections to endpoints: each under its own certificate, none under nobody's."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import sys

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from opengradient_devnet.gateway.proofs.certificates import make_certificate
from opengradient_x402.effects import drive
from opengradient_x402.errors import InsecureEndpoint
from opengradient_x402.gateway.connections import (
    AsyncEndpointTransport,
    EndpointTransport,
    context_for,
    is_certificate_failure,
    pinned_context,
)
from opengradient_x402.gateway.endpoints import Endpoint, StaticGateway, checked_gateway, reach
from opengradient_x402.http.places import is_private
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.telemetry.spans import HTTP_TRACER
from support.enclaves import impostor

DAY = dt.timedelta(days=1)


class Issued:
    """A certificate made for a test: by whom, for how long, as an authority or not."""

    def __init__(self, name, *, issuer=None, is_authority=False, valid_for=DAY):
        now = dt.datetime.now(dt.UTC)
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + valid_for)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign((issuer or self).key, hashes.SHA256())
        )
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)

    def context(self, folder, *chain):
        path = folder / f"{self.certificate.serial_number}.pem"
        pem = [
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        ]
        pem += [each.certificate.public_bytes(serialization.Encoding.PEM) for each in (self, *chain)]
        path.write_bytes(b"".join(pem))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        return context


def sync_call(endpoint):
    transport = EndpointTransport()
    try:
        transport.handle_request(endpoint.query("/health", timeout_s=5))
    finally:
        transport.close()


def async_call(endpoint):
    async def call():
        transport = AsyncEndpointTransport()
        try:
            await transport.handle_async_request(endpoint.query("/health", timeout_s=5))
        finally:
            await transport.aclose()

    asyncio.run(call())


@pytest.fixture(params=[sync_call, async_call])
def call(request):
    return request.param


def accepts(call, context, pin):
    """Whether a client that trusts `pin` speaks to a server that shows what `context` holds."""
    with impostor(context) as server, pytest.raises(httpx.TransportError) as caught:
        call(Endpoint(base_url=server.url, certificate_der=pin))
    # It hangs up once it has heard the request; a client that does not trust it says nothing.
    assert bool(server.heard) is isinstance(caught.value, httpx.RemoteProtocolError)
    assert bool(server.heard) is not is_certificate_failure(caught.value)
    return bool(server.heard)


def test_the_registered_certificate_is_accepted_whoever_made_it(call, tmp_path):
    authority = Issued("authority", is_authority=True)
    leaf, issued = Issued("leaf"), Issued("issued", issuer=authority)
    assert accepts(call, authority.context(tmp_path), authority.der)
    assert accepts(call, leaf.context(tmp_path), leaf.der)
    assert accepts(call, issued.context(tmp_path, authority), issued.der), "its authority need not be known"


def test_no_other_certificate_is_accepted_not_even_one_that_the_registered_one_signed(call, tmp_path):
    registered = Issued("registered", is_authority=True)
    other, namesake = Issued("other"), Issued("registered", is_authority=True)
    signed = Issued("signed by it", issuer=registered)
    for shown in (other.context(tmp_path), namesake.context(tmp_path), signed.context(tmp_path, registered)):
        assert not accepts(call, shown, registered.der)


def test_an_expired_certificate_is_not_accepted(call, tmp_path):
    expired = Issued("expired", valid_for=-DAY)
    assert not accepts(call, expired.context(tmp_path), expired.der)


def test_without_a_registered_certificate_only_public_authorities_count(call):
    with impostor() as server, pytest.raises(httpx.ConnectError) as caught:
        call(Endpoint(base_url=server.url))
    assert is_certificate_failure(caught.value)
    assert server.heard == []


def test_no_context_trusts_everybody():
    for endpoint in (
        Endpoint(base_url="http://127.0.0.1:1"),
        Endpoint(base_url="https://enclave.example"),
        Endpoint(base_url="https://enclave.example", certificate_der=make_certificate().der),
    ):
        assert context_for(endpoint).verify_mode is ssl.CERT_REQUIRED
    assert pinned_context(make_certificate().der).cert_store_stats()["x509"] == 1


@pytest.mark.parametrize("traced", [False, True])
def test_nothing_is_said_where_a_far_name_leads_into_the_own_network(call, tmp_path, monkeypatch, traced):
    """A registered name says nothing of where it leads; its owner may let it lead here at any time."""
    leaf = Issued("leaf")
    monkeypatch.setenv("NO_PROXY", "*")
    if traced:
        monkeypatch.setitem(sys.modules, HTTP_TRACER, sys)
    with impostor(leaf.context(tmp_path)) as server:
        port = httpx.URL(server.url).port
        resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more))
        with pytest.raises(httpx.ConnectError, match=r"leads to 127\.0\.0\.1"):
            call(Endpoint(base_url=f"https://enclave.example:{port}", certificate_der=leaf.der, is_far=True))
        assert server.heard == []
        with pytest.raises(httpx.RemoteProtocolError):  # it hangs up once it has heard the request
            call(Endpoint(base_url=f"https://enclave.example:{port}", certificate_der=leaf.der))
        assert server.heard


class Elsewhere(socket.socket):
    """A connection to this machine that says it leads to another one."""

    @classmethod
    def connected(cls, port):
        made = cls()
        made.connect(("127.0.0.1", port))
        return made

    def getpeername(self):
        return "198.51.100.7", 80


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["localhost", "gateway.localhost"])
def test_nothing_is_said_in_the_clear_where_a_name_of_this_machine_leads_to_another_one(
    call, tmp_path, monkeypatch, traced, name
):
    """`localhost` and the names below it are paid over plain http; a resolver may know any address for them."""
    monkeypatch.setenv("NO_PROXY", "*")
    if traced:
        monkeypatch.setitem(sys.modules, HTTP_TRACER, sys)
    with impostor() as server:
        port = httpx.URL(server.url).port
        resolve = socket.getaddrinfo
        with monkeypatch.context() as lying:
            lying.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve("198.51.100.7", *rest, **more))
            lying.setattr(socket, "create_connection", lambda *_address: Elsewhere.connected(port))
            with pytest.raises(httpx.ConnectError, match=r"198\.51\.100\.7, which is not this machine"):
                call(Endpoint(base_url=f"http://{name}:{port}"))
        assert server.heard == []


@pytest.mark.parametrize(
    "url",
    ["https://me:SECRET@gateway.example", "http://SECRET@127.0.0.1:1/v1", "https://gateway.example/v1?key=SECRET"],
)
def test_a_gateways_url_that_holds_a_secret_is_refused_and_not_repeated(url):
    from langchain_opengradient import ChatOpenGradient
    from llama_index_opengradient import OpenGradient

    for make in (
        lambda: ChatOpenGradient(model="openai/gpt-5", base_url=url),
        lambda: OpenGradient(model="openai/gpt-5", base_url=url),
        lambda: checked_gateway(url, policy=SpendPolicy()),
    ):
        with pytest.raises(ValueError, match=r"Nothing was paid.*`default_headers`") as caught:
            make()
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_home"),
    [
        ("10.0.0.1", True),
        ("167772161", True),
        ("0x0a000001", True),
        ("0xa.0.0.1", True),
        ("012.0.0.1", True),
        ("10.1", True),
        ("10.0.0.1.", True),
        ("10\u30020\u30020\u30021", True),
        ("\u2460\u24ea.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("::10.0.0.1", True),
        ("64:ff9b::10.0.0.1", True),
        ("64:ff9b:1::10.0.0.1", True),
        ("2002:a00:1::", True),
        ("fec0::1", True),
        ("fe80::1%25eth0", True),
        ("64:ff9b::8.8.8.8", False),
        ("2606:4700::1111", False),
        ("8.8.8.8", False),
        ("134744072", False),
        ("gateway.example", False),
        ("10.example", False),
        ("1.2.3.4.5", False),
        ("99999999999", False),
        ("0" * 5000 + "12.0.0.1", True),
        ("0x" + "0" * 5000 + "a000001", True),
        ("9" * 5000, False),
        ("0x" + "f" * 5000, False),
        ("1.2.3." + "4" * 5000, False),
    ],
)
def test_an_address_is_the_same_in_every_spelling(host, is_home):
    assert is_private(host) is is_home
    if is_home:
        with pytest.raises(InsecureEndpoint):
            SpendPolicy().check_endpoint(f"https://{f'[{host}]' if ':' in host else host}")


def test_a_refused_connection_is_no_certificate_failure(call):
    with pytest.raises(httpx.ConnectError) as caught:
        call(Endpoint(base_url="https://127.0.0.1:9"))
    assert not is_certificate_failure(caught.value)


async def test_a_request_for_no_endpoint_is_refused_rather_than_sent():
    request = httpx.Request("GET", "https://enclave.example")
    with pytest.raises(InsecureEndpoint, match="names no endpoint"):
        EndpointTransport().handle_request(request)
    with pytest.raises(InsecureEndpoint, match="names no endpoint"):
        await AsyncEndpointTransport().handle_async_request(request)


async def test_pools_that_no_call_used_for_an_hour_are_closed_when_another_one_opens(monkeypatch):
    old, new = (Endpoint(base_url=f"http://127.0.0.1:{port}") for port in (9, 11))
    transport, coroutines = EndpointTransport(), AsyncEndpointTransport()
    for endpoint in (old, old, new):
        with pytest.raises(httpx.ConnectError):
            transport.handle_request(endpoint.query("/", timeout_s=5))
        with pytest.raises(httpx.ConnectError):
            await coroutines.handle_async_request(endpoint.query("/", timeout_s=5))
        assert (old in transport._pools, old in coroutines._pools) == (endpoint is old,) * 2
        for pools in (transport._pools, coroutines._pools):
            if endpoint is old:
                pools[old].used_at -= 3601
    transport.close()
    await coroutines.aclose()
    assert transport._pools == coroutines._pools == {}


class Sources:
    """An endpoint source that has the given endpoints and remembers what failed."""

    def __init__(self, *urls):
        self.endpoints = [Endpoint(base_url=url) for url in urls]
        self.reported = []

    def current(self):
        yield from ()
        return self.endpoints[0]

    def after(self, tried):
        yield from ()
        return next((endpoint for endpoint in self.endpoints if endpoint not in tried), None)

    def failed(self, endpoint):
        self.reported.append(endpoint.base_url)


def reached(source, failures, **options):
    asked = []

    def attempt(endpoint):
        asked.append(endpoint.base_url)
        yield from ()
        if (failure := failures.get(endpoint.base_url)) is not None:
            raise failure
        return endpoint.base_url

    try:
        return drive(reach(source, attempt, **options), lambda effect: None), asked
    except httpx.TransportError as exc:
        return exc, asked


def test_each_endpoint_is_tried_once_until_one_connects():
    refused = httpx.ConnectError("refused")
    source = Sources("a", "b", "c")
    assert reached(source, {"a": refused, "b": httpx.ConnectTimeout("slow")}) == ("c", ["a", "b", "c"])
    assert source.reported == ["a", "b"]
    assert reached(Sources("a", "b"), {"a": refused, "b": refused}) == (refused, ["a", "b"])


@pytest.mark.parametrize(
    "kind", [httpx.ReadError, httpx.ReadTimeout, httpx.WriteError, httpx.RemoteProtocolError, httpx.PoolTimeout]
)
def test_nobody_else_is_asked_once_a_connection_was_made(kind):
    failure = kind("too late")
    source = Sources("a", "b")
    assert reached(source, {"a": failure}) == (failure, ["a"])
    assert source.reported == []


def test_nobody_else_is_asked_when_the_time_is_up():
    refused = httpx.ConnectError("refused")
    assert reached(Sources("a", "b"), {"a": refused}, until=0.0) == (refused, ["a"])


def test_a_static_gateway_has_one_endpoint_and_no_other():
    gateway = StaticGateway("https://gateway.example/v1/")
    endpoint = drive(gateway.current(), lambda effect: None)
    assert endpoint == Endpoint(base_url="https://gateway.example")
    gateway.failed(endpoint)
    gateway.doubt()
    assert drive(gateway.after([endpoint]), lambda effect: None) is None


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_a_gateway_is_the_same_however_much_of_its_address_is_given(path):
    assert checked_gateway(f"https://gateway.example{path}", policy=SpendPolicy()).base_url == "https://gateway.example"
