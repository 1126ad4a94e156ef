"""What runs in a gateway's enclave is asked with a fresh nonce, and `pcr_hashes` hold for a gateway at a URL."""

from __future__ import annotations

import base64
import json

import httpx
import pytest

from opengradient_devnet.faults import ForgeAttestation, ForgeProof
from opengradient_x402.errors import ConfigurationError, GatewayUnreachable, InsecureEndpoint, ProofRejected
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.transport import X402Transport
from opengradient_x402.proofs.nitro import check_document, ledger_key
from support.enclaves import dead_url
from support.payers import PROMPT, async_client_for, client_for, payments_for

ANOTHER = "0x" + "11" * 32


@pytest.fixture
def image(client):
    return client.attest().pcr_hash


@pytest.fixture
def allowing(net, account, tmp_path):
    """Payments under a policy that allows these images only."""
    opened = []

    def open_payments(*images):
        payments = payments_for(net, account, tmp_path / f"{len(opened)}.sqlite", policy=SpendPolicy(pcr_hashes=images))
        opened.append(payments)
        return payments.__enter__()

    yield open_payments
    for payments in opened:
        payments.__exit__(None, None, None)


def test_a_live_document_is_judged_and_kept_for_the_bundle(client, payments, net):
    attestation = client.attest()
    assert attestation.is_valid
    noted = json.loads(payments.ledger.noted(ledger_key(attestation.tee_id)).result())
    again = check_document(
        base64.b64decode(noted["document"]),
        root_sha256=payments.network.attestation_root_sha256,
        nonce=bytes.fromhex(noted["nonce"]),
        public_key_der=base64.b64decode(noted["public_key"]),
    )
    assert again.is_valid
    assert client.chat(PROMPT).receipt.tee_id == attestation.tee_id
    assert client.attest().nonce != attestation.nonce


def test_the_registered_certificate_is_the_one_that_is_attested(payments, net):
    with client_for(payments, base_url="registry") as client:
        attestation = client.attest()
        assert attestation.is_valid
        assert attestation.certificate_der is not None
        net.faults.inject(ForgeAttestation(part="certificate"))
        assert client.attest().check.verdict == "wrong_certificate"


@pytest.mark.parametrize("part", ["root", "chain", "signature", "nonce", "stale", "debug", "key"])
def test_a_wrong_document_is_a_verdict(client, net, part):
    net.faults.inject(ForgeAttestation(part=part))
    assert not client.attest().is_valid


async def test_async_clients_ask_as_well(payments):
    client = async_client_for(payments)
    assert (await client.attest()).is_valid
    await client.aclose()


def test_no_answer_is_an_error_that_says_so(payments):
    with client_for(payments, base_url=dead_url()) as client, pytest.raises(GatewayUnreachable, match="Nothing was"):
        client.attest()


def test_an_allowed_image_is_called_and_the_attested_key_must_sign(net, allowing, image):
    with client_for(allowing(image), verify_tee="require") as client:
        assert client.chat(PROMPT).receipt.tee_verified == "verified (key from the attestation)"
        net.faults.inject(ForgeProof(part="key"))
        with pytest.raises(ProofRejected):
            client.chat(PROMPT)


def test_an_image_that_is_not_allowed_is_not_paid(net, account, allowing):
    payments = allowing(ANOTHER)
    with client_for(payments) as client:
        with pytest.raises(InsecureEndpoint, match=r"another image .* Nothing was signed"):
            client.chat(PROMPT)
        with pytest.raises(InsecureEndpoint, match="another image"):
            client.stream(PROMPT)
        assert client.attest().check.verdict == "wrong_image"
    assert payments.ledger.authorizations().result() == []


async def test_an_image_that_is_not_allowed_is_not_paid_async(allowing):
    payments = allowing(ANOTHER)
    client = async_client_for(payments)
    with pytest.raises(InsecureEndpoint, match="another image"):
        await client.chat(PROMPT)
    await client.aclose()
    assert payments.ledger.authorizations().result() == []


@pytest.mark.parametrize("part", ["root", "debug", "stale", "nonce", "image"])
def test_a_gateway_with_a_wrong_document_is_not_paid(net, allowing, image, part):
    payments = allowing(image)
    net.faults.inject(ForgeAttestation(part=part), times=None)
    with client_for(payments) as client, pytest.raises(InsecureEndpoint, match="Nothing was signed"):
        client.chat(PROMPT)
    assert payments.ledger.authorizations().result() == []


def test_a_document_is_asked_for_once_and_not_for_every_call(net, allowing, image):
    with client_for(allowing(image)) as client:
        client.chat(PROMPT)
        net.faults.inject(ForgeAttestation(part="root"), times=None)
        assert client.chat(PROMPT).content
    assert not any(isinstance(fault, ForgeAttestation) and fault.part == "root" for fault in net.faults.struck[-1:])


def test_what_cannot_keep_the_list_of_images_says_so(allowing):
    payments = allowing(ANOTHER)
    with pytest.raises(ConfigurationError, match="pcr_hashes"):
        X402Transport(payments)
    with pytest.raises(ConfigurationError, match="pcr_hashes"):
        client_for(payments, http_transport=httpx.HTTPTransport()).__enter__()
