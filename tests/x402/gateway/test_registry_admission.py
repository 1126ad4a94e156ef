"""Which registered enclaves may be called: an entry is a claim, and some claims lead where no payment must go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opengradient_devnet.gateway.proofs.certificates import make_certificate
from opengradient_x402.chain.contracts import RegisteredTee
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint
from opengradient_x402.gateway.enclaves import admit
from opengradient_x402.gateway.endpoints import Endpoint
from opengradient_x402.networks import PRESETS
from opengradient_x402.payment.policy import SpendPolicy

BASE = PRESETS["base"]
LOCAL = replace(BASE, gateway_url="http://127.0.0.1:4020", name="devnet")
CERTIFICATE = make_certificate().der
TEE = RegisteredTee(
    id="0x" + "ab" * 32,
    owner="0x" + "11" * 20,
    payment_address="0x" + "77" * 20,
    endpoint="https://enclave.example:8443/v1/",
    public_key_der=b"key",
    certificate_der=CERTIFICATE,
    pcr_hash="0x" + "cd" * 32,
    tee_type=0,
    is_enabled=True,
    registered_at=1,
    last_heartbeat_at=1,
)


def refusal(*, network=BASE, policy=None, **changes):
    with pytest.raises(InsecureEndpoint) as caught:
        admit(replace(TEE, **changes), network=network, policy=policy or SpendPolicy())
    return caught.value.message


def test_an_ordinary_enclave_becomes_an_endpoint_with_its_pin_payee_and_key():
    assert admit(TEE, network=BASE, policy=SpendPolicy()) == Endpoint(
        base_url="https://enclave.example:8443",
        certificate_der=CERTIFICATE,
        payees=frozenset({TEE.payment_address}),
        tee_id=TEE.id,
        public_key_der=b"key",
        is_far=True,
    )


def test_what_its_name_leads_to_is_looked_at_unless_the_network_is_local():
    assert admit(TEE, network=BASE, policy=SpendPolicy()).is_far
    assert not admit(TEE, network=LOCAL, policy=SpendPolicy()).is_far
    assert not admit(TEE, network=BASE, policy=SpendPolicy(allow_private_endpoints=True)).is_far


@pytest.mark.parametrize(
    "host",
    [
        "[64:ff9b::a00:1]",
        "[64:ff9b:1::a00:1]",
        "[2002:a00:1::]",
        "[::10.0.0.1]",
        "[2001:0:5ef5:79fd::f5ff:fffe]",
        "[fec0::1]",
        "[3fff::1]",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.10",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
        "[fd12::1]",
        "[::]",
        "[::ffff:10.0.0.1]",
        "[::ffff:169.254.169.254]",
    ],
)
def test_addresses_of_no_public_host_are_refused(host):
    for network in (BASE, LOCAL):
        assert "private, link-local or reserved" in refusal(endpoint=f"https://{host}:8443", network=network)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "enclave.localhost", "[::1]"])
def test_this_machine_is_for_local_networks_only(host):
    endpoint = f"https://{host}:8443"
    assert "it is on this machine" in refusal(endpoint=endpoint)
    assert admit(replace(TEE, endpoint=endpoint), network=LOCAL, policy=SpendPolicy()).base_url == endpoint


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "169.254.43518",
        "1.2.3.4.5",
    ],
)
def test_numbers_in_disguise_are_refused(host):
    for network in (BASE, LOCAL):
        assert "is not called: its host is a number" in refusal(endpoint=f"https://{host}", network=network)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "enclave.example",
        "http://enclave.example",
        "http://127.0.0.1:4020",
        "ftp://enclave.example",
        "https://",
        "https:///path",
        "https://user@enclave.example",
        "https://user:secret@enclave.example",
        "https://enclave.example?to=10.0.0.1",
        "https://enclave.example#10.0.0.1",
        "https://enclave.example:99999",
        "https://enclave.example:port",
        "https://enclave.example\r\nx-evil: 1",
        "https://enclave.example/ space",
        "https://10.0.0.1\\@enclave.example",
        "https://enclave.example\\.10.0.0.1",
        "https://[::1",
        "https://010.0.0.1",
        "https://0300.0250.0.1",
        "https://ünclave.example",
        "https://enclave.example/" + "x" * 600,
    ],
)
def test_addresses_of_another_form_are_refused(endpoint):
    assert "its address is not" in refusal(endpoint=endpoint, network=LOCAL)


def test_private_addresses_are_called_when_the_user_says_that_they_are_theirs():
    policy = SpendPolicy(allow_private_endpoints=True)
    for endpoint in ("https://10.1.2.3", "https://127.0.0.1:8443"):
        assert admit(replace(TEE, endpoint=endpoint), network=BASE, policy=policy).base_url == endpoint


AT_VERSION = CERTIFICATE.index(bytes.fromhex("a003020102")) + 4


@pytest.mark.parametrize(
    "certificate",
    [
        CERTIFICATE[:AT_VERSION] + b"\7" + CERTIFICATE[AT_VERSION + 1 :],
        b"",
        b"\x30\x03\x02\x01\x01",
        CERTIFICATE[:-1],
        CERTIFICATE * 2,
        b"-----BEGIN CERTIFICATE-----",
    ],
)
def test_a_certificate_that_nothing_can_be_pinned_to_is_refused(certificate):
    assert "its registered certificate cannot be used" in refusal(certificate_der=certificate)


def test_disabled_enclaves_and_those_that_pay_nobody_are_refused():
    assert "disabled" in refusal(is_enabled=False)
    assert "nobody to pay" in refusal(payment_address="0x" + "0" * 40)


def test_images_are_compared_whatever_their_case():
    assert "is not among the policy's `pcr_hashes`" in refusal(policy=SpendPolicy(pcr_hashes=["0x" + "00" * 32]))
    assert "`pcr_hashes`" in refusal(policy=SpendPolicy(pcr_hashes=[]))
    for given in ("0x" + "CD" * 32, ["0x" + "cd" * 32]):
        assert admit(TEE, network=BASE, policy=SpendPolicy(pcr_hashes=given)).tee_id == TEE.id


@pytest.mark.parametrize("given", [["0x12"], ["cd" * 32], ["0x" + "zz" * 32], "0x"])
def test_an_image_that_is_no_hash_is_a_configuration_error(given):
    with pytest.raises(ConfigurationError, match="pcr_hashes"):
        SpendPolicy(pcr_hashes=given)
