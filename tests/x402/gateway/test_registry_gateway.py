"""Calls to registered enclaves over real TLS: who is believed, who is paid, who is called when one is gone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import httpx
import pytest
from blockbuster import blockbuster_ctx

from opengradient_devnet import faults
from opengradient_devnet.gateway.proofs.certificates import make_certificate
from opengradient_x402.chain.contracts import active_tees
from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.errors import (
    ChainUnavailable,
    ConfigurationError,
    GatewayUnreachable,
    InsecureEndpoint,
    PaymentOutcomeUnknown,
    PolicyRefused,
    ProofRejected,
    UnknownModel,
)
from opengradient_x402.gateway.enclaves import RegistryGateway
from opengradient_x402.gateway.endpoints import StaticGateway
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from support.enclaves import PAYEE, dead_url, impostor, registry
from support.payers import PROMPT, async_client_for, client_for, network_of, settled_receipts

IN_A_PRIVATE_RANGE = ["https://10.0.0.7", "https://192.168.1.1:8443", "https://169.254.169.254", "https://[fd00::1]"]


@pytest.fixture(scope="module")
def enclave(net):
    """The devnet's own enclave, as its own registry lists it: the truth that other entries deviate from."""
    network = network_of(net)
    (tee,) = ChainReader(network.rpc_url, network.chain_id).ask(active_tees(network.registry.address))
    return tee


@pytest.fixture(scope="module")
def listed_at():
    with registry() as book:
        yield book


@pytest.fixture
def book(listed_at):
    yield listed_at
    listed_at.clear()


@pytest.fixture
def pay(net, book, tmp_path):
    """Payments of a fresh wallet on a network whose registry is the test's."""
    opened = []

    def open_payments(*, policy=None, **changes):
        network = replace(network_of(net), **{"registry": book.contract, **changes})
        key = net.account(opg="10", approved=True).private_key
        ledger = tmp_path / f"{len(opened)}.sqlite"
        opened.append(Payments.open(network=network, private_key=key, policy=policy, ledger=ledger))
        return opened[-1]

    yield open_payments
    for payments in opened:
        payments.close()


@pytest.fixture
def list_devnet(book, enclave):
    """Lists the devnet's enclave, truthfully unless told otherwise."""

    def register(**changes):
        entry = {"payment_address": enclave.payment_address, "public_key_der": enclave.public_key_der, **changes}
        certificate = entry.pop("certificate_der", enclave.certificate_der)
        return book.register(entry.pop("endpoint", enclave.endpoint), certificate, **entry)

    return register


def chat(payments, **options):
    with client_for(payments, **options) as client:
        return client.chat(PROMPT).content


def stream(payments, **options):
    with client_for(payments, **options) as client, client.stream(PROMPT) as deltas:
        return "".join(delta.content for delta in deltas)


def async_chat(payments, **options):
    async def call():
        async with async_client_for(payments, **options) as client:
            return (await client.chat(PROMPT)).content

    return asyncio.run(call())


def async_stream(payments, **options):
    async def call():
        async with async_client_for(payments, **options) as client, await client.stream(PROMPT) as deltas:
            return "".join([delta.content async for delta in deltas])

    return asyncio.run(call())


@pytest.fixture(params=[chat, stream, async_chat, async_stream])
def call(request):
    """The four ways to call, all of which must come to the same decision."""
    return request.param


def authorizations(payments):
    return payments.ledger.authorizations().result()


def gateway_for(payments, *, first="", **options):
    """The registry's enclaves, beginning with the one at `first`."""
    return RegistryGateway(
        payments.network,
        policy=payments.policy,
        shuffle=lambda endpoints: endpoints.sort(key=lambda endpoint: endpoint.base_url != first),
        **options,
    )


# -- who is believed, who is paid


def test_a_registered_enclave_serves_proves_and_is_paid_at_its_registered_address(net, pay, list_devnet, call):
    list_devnet()
    payments = pay(payees=frozenset())  # nobody but the registry vouches for the payee
    assert "What is x402?" in call(payments, base_url="registry", verify_tee="require")
    (entry,) = authorizations(payments)
    assert entry.endpoint.startswith(net.https_gateway_url)
    (receipt,) = settled_receipts(net, payments)
    assert receipt.settled_atomic > 0


def test_a_rogue_certificate_is_refused_before_anything_is_said(pay, book, enclave, call):
    payments = pay()
    with impostor() as server:
        book.register(server.url, enclave.certificate_der, payment_address=enclave.payment_address)
        with pytest.raises(InsecureEndpoint, match=r"certificate.*Nothing was sent, signed or paid") as caught:
            call(payments, base_url="registry")
    assert not caught.value.is_retryable
    assert server.connections == 1
    assert server.heard == []
    assert authorizations(payments) == []


def test_an_honest_gateway_behind_a_certificate_that_is_not_registered_is_refused_too(pay, list_devnet, call):
    list_devnet(certificate_der=make_certificate().der)
    payments = pay()
    with pytest.raises(InsecureEndpoint, match="certificate"):
        call(payments, base_url="registry")
    assert authorizations(payments) == []


def test_a_payee_other_than_the_registered_one_is_refused_before_signing(pay, list_devnet, enclave, call):
    list_devnet(payment_address=PAYEE)
    payments = pay()
    assert enclave.payment_address in payments.network.payees, "the network's own list would allow it"
    with pytest.raises(PolicyRefused, match=f"it pays {enclave.payment_address}, and the registry names"):
        call(payments, base_url="registry")
    assert authorizations(payments) == []


def test_a_policys_payees_do_not_loosen_what_the_registry_says(pay, list_devnet, enclave):
    list_devnet(payment_address=PAYEE)
    payments = pay(policy=SpendPolicy(payees=[enclave.payment_address]))
    with pytest.raises(PolicyRefused, match="the registry names"):
        chat(payments, base_url="registry")


@pytest.mark.parametrize("endpoint", IN_A_PRIVATE_RANGE)
def test_endpoints_in_private_ranges_are_refused(pay, list_devnet, endpoint, call):
    list_devnet(endpoint=endpoint)
    payments = pay()
    with pytest.raises(InsecureEndpoint, match=r"None of the 1 enclaves.*private, link-local or reserved"):
        call(payments, base_url="registry")
    assert authorizations(payments) == []


def test_this_machine_is_refused_outside_a_local_network(pay, list_devnet, call):
    list_devnet()
    payments = pay(gateway_url="https://llm.opengradient.ai", name="public")
    with pytest.raises(InsecureEndpoint, match="it is on this machine, and public is not a local network"):
        call(payments, base_url="registry")
    assert authorizations(payments) == []


def test_only_allowed_images_are_called(pay, list_devnet):
    allowed, other = "0x" + "AB" * 32, "0x" + "cd" * 32
    list_devnet(pcr_hash=bytes.fromhex(allowed[2:]))
    assert chat(pay(policy=SpendPolicy(pcr_hashes=[allowed])), base_url="registry")
    payments = pay(policy=SpendPolicy(pcr_hashes=[other]))
    with pytest.raises(InsecureEndpoint, match="its image 0xabab"):
        chat(payments, base_url="registry")
    assert authorizations(payments) == []


def test_a_model_list_comes_over_the_pinned_line_too(pay, list_devnet, enclave):
    list_devnet()
    payments = pay()
    with (
        client_for(payments, base_url="registry") as client,
        pytest.raises(UnknownModel, match=f"{enclave.endpoint} does not serve"),
    ):
        client.chat({**PROMPT, "model": "nobody/nothing"})


# -- failover


def test_a_dead_enclave_is_left_for_a_live_one(net, pay, book, list_devnet, enclave, call, caplog):
    gone = dead_url()
    book.register(gone, make_certificate().der)
    list_devnet()
    payments = pay()
    gateway = gateway_for(payments, first=gone)
    with caplog.at_level(logging.WARNING):
        # Proven with the key of the enclave that served, not of the one that was to serve.
        assert "What is x402?" in call(payments, gateway=gateway, max_retries=0, verify_tee="require")
    assert f"No connection to {gone}" in caplog.text
    caplog.clear()
    assert call(payments, gateway=gateway, max_retries=0), "the dead one stays behind"
    assert caplog.text == ""
    assert len(authorizations(payments)) == 1
    assert [receipt.payee for receipt in settled_receipts(net, payments)] == [enclave.payment_address] * 2


def test_an_impostor_is_left_for_an_enclave_that_is_what_it_says(pay, book, list_devnet, enclave, call):
    payments = pay()
    with impostor() as server:
        book.register(server.url, make_certificate().der)
        list_devnet()
        assert call(payments, gateway=gateway_for(payments, first=server.url), max_retries=0)
    assert (server.connections, server.heard) == (1, [])
    assert [entry.terms.payee for entry in authorizations(payments)] == [enclave.payment_address]


def test_an_enclave_that_dies_between_challenge_and_signature_is_left_without_paying_twice(
    net, pay, book, list_devnet, enclave, call
):
    """The first endpoint's terms are known, so the first thing that cannot be sent to it is a signature."""
    list_devnet()
    payments = pay()
    chat(payments, gateway=gateway_for(payments))
    book.clear()
    net.close_sessions()
    gone = dead_url()
    book.register(gone, enclave.certificate_der, payment_address=enclave.payment_address)
    list_devnet()
    for key in list(payments._terms):
        payments.remember_terms(key._replace(origin=gone), payments._terms[key])
    gateway = gateway_for(payments, first=gone)
    assert call(payments, gateway=gateway, max_retries=0)
    first, second = authorizations(payments)
    assert (first.status, second.status) == ("signed", "signed")
    assert second.endpoint.startswith(enclave.endpoint)
    assert len(settled_receipts(net, payments)) == 2


def test_nobody_else_is_called_after_a_signature_left(net, pay, book, list_devnet, enclave, call):
    payments = pay()
    with impostor() as other:
        list_devnet()
        book.register(other.url, other.certificate.der)
        net.faults.inject(faults.HangUp(), times=None)
        with pytest.raises(PaymentOutcomeUnknown):
            call(payments, gateway=gateway_for(payments, first=enclave.endpoint))
    assert other.connections == 0
    assert len(authorizations(payments)) == 1


def test_when_nobody_can_be_reached_the_error_says_so_and_nothing_is_paid(pay, book, call):
    for _ in range(2):
        book.register(dead_url(), make_certificate().der)
    payments = pay()
    with pytest.raises(GatewayUnreachable, match="Nothing was signed") as caught:
        call(payments, gateway=gateway_for(payments), max_retries=0)
    assert caught.value.is_retryable
    assert authorizations(payments) == []


# -- rotation and age


def test_a_new_certificate_is_found_within_the_call_that_needs_it(pay, list_devnet, call):
    list_devnet(certificate_der=make_certificate().der)
    payments = pay()
    gateway = gateway_for(payments, min_age_s=0.0)
    with pytest.raises(InsecureEndpoint, match="certificate"):
        call(payments, gateway=gateway)
    list_devnet()
    assert call(payments, gateway=gateway, max_retries=0)


def test_a_new_signing_key_is_found_by_the_call_after_the_one_that_noticed(pay, book, list_devnet, enclave):
    list_devnet(public_key_der=b"the key before the restart")
    payments = pay()
    gateway = gateway_for(payments, min_age_s=0.0)
    with pytest.raises(ProofRejected):
        chat(payments, gateway=gateway, verify_tee="require")
    assert gateway.public_key(enclave.id) is None
    book.clear()
    list_devnet()
    assert chat(payments, gateway=gateway, verify_tee="require")
    assert gateway.public_key(enclave.id) == enclave.public_key_der


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_registry_is_read_once_renewed_beside_the_calls_and_not_called_when_too_old(pay, book, list_devnet):
    list_devnet()
    payments, clock = pay(), Clock()
    gateway = gateway_for(payments, clock=clock, max_age_s=600.0)
    with client_for(payments, gateway=gateway) as client:
        for _ in range(5):
            client.chat(PROMPT)
        assert book.node.count("eth_call") == 1
        clock.now += 301
        client.chat(PROMPT)
        gateway._reading.result(60)
        assert book.node.count("eth_call") == 2
        client.chat(PROMPT)
        assert book.node.count("eth_call") == 2

        book.node.misbehave = lambda method, params, number: (500, {"error": {"code": -32000, "message": "down"}})
        clock.now += 301
        client.chat(PROMPT)
        assert gateway._reading.exception(5) is not None
        client.chat(PROMPT)
        clock.now += 300
        for _ in range(2):
            with pytest.raises(ChainUnavailable, match="cannot be read, so it is not known whom to call and to pay"):
                client.chat(PROMPT)
        book.node.misbehave = lambda method, params, number: None
        assert client.chat(PROMPT).content


def test_an_enclave_that_leaves_the_registry_is_not_called_any_more(pay, book, list_devnet):
    list_devnet()
    payments, clock = pay(), Clock()
    gateway = gateway_for(payments, clock=clock)
    with client_for(payments, gateway=gateway) as client:
        client.chat(PROMPT)
        book.clear()
        clock.now += 601
        with pytest.raises(GatewayUnreachable, match="lists no active enclave"):
            client.chat(PROMPT)


def test_clients_of_one_payer_share_one_reading_and_one_session(pay, book, list_devnet):
    list_devnet()
    payments = pay()

    async def many():
        async with async_client_for(payments, base_url="registry") as client:
            return await asyncio.gather(*(client.chat(PROMPT) for _ in range(8)))

    assert all(answer.content for answer in asyncio.run(many()))
    assert chat(payments, base_url="registry")
    assert book.node.count("eth_call") == 1
    assert len(authorizations(payments)) == 1


async def test_a_sync_call_inside_a_running_loop_reads_the_registry_too(pay, list_devnet):
    list_devnet()
    assert chat(pay(), base_url="registry")


async def test_the_event_loop_is_never_blocked(pay, list_devnet):
    payments = await asyncio.to_thread(lambda: (list_devnet(), pay())[1])
    with blockbuster_ctx(["opengradient_x402"]):
        client = async_client_for(payments, base_url="registry", verify_tee="require")
        assert (await client.chat(PROMPT)).content
        async with await client.stream(PROMPT) as deltas:
            assert [delta async for delta in deltas]
        await client.aclose()


async def test_a_cancelled_first_call_leaves_the_reading_to_the_others(pay, book, list_devnet):
    list_devnet()
    payments = pay()
    client = async_client_for(payments, base_url="registry")
    first = asyncio.create_task(client.chat(PROMPT))
    await asyncio.sleep(0)
    second = asyncio.create_task(client.chat(PROMPT))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).content
    assert book.node.count("eth_call") == 1
    await client.aclose()


# -- from the frameworks


def test_both_faces_call_the_registry_by_its_name(net, pay, list_devnet, monkeypatch):
    import llama_index_opengradient
    from langchain_opengradient import ChatOpenGradient, receipt_of
    from llama_index_opengradient import OpenGradient

    list_devnet()
    wallet = {"private_key": net.account(opg="10", approved=True).private_key, "network": pay().network}
    with ChatOpenGradient(model="openai/gpt-5", base_url="registry", **wallet) as model:
        receipt = receipt_of(model.invoke("Hello"))
    assert receipt.endpoint.startswith(net.https_gateway_url)
    model = OpenGradient(model="openai/gpt-5", base_url="registry", **wallet)
    assert llama_index_opengradient.receipt_of(model.complete("Hello")).endpoint.startswith(net.https_gateway_url)
    model.close()
    monkeypatch.setenv("OG_GATEWAY_URL", "registry")
    with ChatOpenGradient(model="openai/gpt-5", **wallet) as model:
        receipt = receipt_of(model.invoke("Hello"))
    assert receipt.endpoint.startswith(net.https_gateway_url)


# -- what cannot be meant


def test_a_registry_that_cannot_be_read_stops_the_call_with_what_to_do(pay, book, call):
    book.node.misbehave = lambda method, params, number: (200, {"result": "0x1234"})
    payments = pay()
    with pytest.raises(ConfigurationError, match=r"serves chain 4660.*`base_url`"):
        call(payments, base_url="registry")


def test_a_network_without_a_registry_says_what_to_name_instead(pay):
    with pytest.raises(ConfigurationError, match="`base_url`"):
        chat(pay(registry=None), base_url="registry")


def test_a_registry_behind_plain_http_is_refused(pay, book):
    payments = pay(registry=replace(book.contract, rpc_url="http://node.example/rpc"))
    with pytest.raises(InsecureEndpoint, match="could name other enclaves and payees"):
        chat(payments, base_url="registry")


def test_a_transport_of_the_users_cannot_stand_in_for_the_pinned_one(pay):
    payments = pay()
    unverified = httpx.HTTPTransport(verify=False)
    with pytest.raises(ConfigurationError, match="cannot be pinned"):
        chat(payments, base_url="registry", http_transport=unverified)
    with pytest.raises(ConfigurationError, match="cannot be pinned"):
        async_client_for(payments, base_url="registry", http_transport=httpx.AsyncHTTPTransport(verify=False))


def test_two_answers_to_where_calls_go_are_one_too_many(net, pay):
    with pytest.raises(ConfigurationError, match="give one"):
        chat(pay(), base_url="registry", gateway=StaticGateway(net.gateway_url))


def test_a_static_gateway_is_paid_as_a_base_url_is(net, pay, call):
    assert call(pay(), gateway=StaticGateway(net.gateway_url + "/v1/"))


def test_a_static_https_gateway_with_a_certificate_of_its_own_is_refused_at_once(net, pay, call):
    payments = pay()
    with pytest.raises(InsecureEndpoint, match="certificate"):
        call(payments, base_url=net.https_gateway_url)
    assert authorizations(payments) == []
