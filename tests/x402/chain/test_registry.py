"""What the registry says, read from its bytes: the same as a general ABI decoder reads, and nothing from garbage."""

from __future__ import annotations

import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_devnet.contracts import TEE_REGISTRY, contract
from opengradient_x402.addresses import keccak256
from opengradient_x402.chain.contracts import (
    GET_ACTIVE_TEES,
    GET_TEE,
    active_tees,
    decode_tee,
    decode_tees,
    registered_tee,
)
from opengradient_x402.chain.questions import ChainReader, RpcRequest
from opengradient_x402.errors import RpcError
from support.enclaves import CHAIN_ID, PAYEE, registry
from support.node import asked

ABI = contract("TEERegistry")
OHTTP = "(uint8,uint16,uint16,uint16,bytes,bytes,uint256)"
LISTED = f"(address,address,string,bytes,bytes,bytes32,uint8,bool,uint256,uint256,{OHTTP})"

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
numbers = st.integers(0, 2**64)
structs = st.tuples(
    addresses,
    addresses,
    st.text(max_size=80),
    st.binary(max_size=300),
    st.binary(max_size=300),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 255),
    st.booleans(),
    numbers,
    numbers,
    st.tuples(
        st.integers(0, 255),
        *[st.integers(0, 65535)] * 3,
        st.binary(max_size=64),
        st.binary(max_size=70),
        numbers,
    ),
)


def encoded(kind, value):
    from eth_abi.abi import encode

    return encode([kind], [value])


@pytest.fixture(scope="module")
def book():
    with registry() as opened:
        yield opened


@pytest.fixture
def chain(book):
    yield ChainReader(book.node.url, CHAIN_ID)
    book.clear()


def test_selectors_are_those_of_the_live_registrys_abi():
    assert {name: "0x" + ABI.selector(name).hex() for name in ("getActiveTEEs", "getTEE")} == {
        "getActiveTEEs": GET_ACTIVE_TEES,
        "getTEE": GET_TEE,
    }


@given(st.lists(structs, max_size=5))
def test_arrays_read_as_a_general_decoder_reads_them(listed):
    assert [tuple(fields) for fields in decode_tees(encoded(f"{LISTED}[]", listed))] == [tee[:10] for tee in listed]


@given(structs)
def test_one_struct_reads_as_a_general_decoder_reads_it(tee):
    assert tuple(decode_tee(encoded(LISTED, tee))) == tee[:10]


@given(st.lists(structs, min_size=1, max_size=2), st.data())
def test_damaged_answers_are_refused_or_read_and_never_crash(listed, data):
    answer = bytearray(encoded(f"{LISTED}[]", listed))
    for _ in range(data.draw(st.integers(1, 4))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(answer[: data.draw(st.integers(0, len(answer)))])
    for damaged in (bytes(answer), cut):
        try:
            decode_tees(damaged)
        except ValueError:
            continue


@given(st.binary(max_size=400))
def test_noise_is_refused_or_read_and_never_crashes(noise):
    try:
        decode_tees(noise)
    except ValueError:
        return


def test_an_answer_that_points_at_itself_a_thousand_times_costs_nothing():
    def word(number):
        return number.to_bytes(32, "big")

    one = encoded(
        LISTED, ("0x" + "11" * 20, PAYEE, "", b"", b"x" * 2**20, bytes(32), 0, True, 0, 0, (0, 0, 0, 0, b"", b"", 0))
    )
    for count in (1000, 10**6, 2**255):
        answer = word(32) + word(count) + word(1000 * 32) * 1000 + one[32:]
        started = time.process_time()
        if count == 1000:
            assert {tee.certificate_der for tee in decode_tees(answer)} == {b""}
        else:
            with pytest.raises(ValueError, match="claims"):
                decode_tees(answer)
        assert time.process_time() - started < 0.5


def test_an_entry_with_an_endless_certificate_does_not_hide_the_others():
    good, endless = ("0x" + "11" * 20, PAYEE, "https://x", b"key", b"certificate"), b"x" * 20_000
    rest = (bytes(32), 0, True, 0, 0, (0, 0, 0, 0, b"", b"", 0))
    listed = decode_tees(encoded(f"{LISTED}[]", [(*good, *rest), (*good[:4], endless, *rest)]))
    assert [tee.certificate_der for tee in listed] == [b"certificate", b""]


def test_an_endpoint_that_is_no_text_does_not_hide_the_others():
    broken = encoded(
        LISTED, ("0x" + "11" * 20, PAYEE, "https://x", b"", b"", bytes(32), 0, True, 0, 0, (0, 0, 0, 0, b"", b"", 0))
    )
    assert decode_tee(broken.replace(b"https://x", b"https:/\xff\xfe")).endpoint == "https:/\ufffd\ufffd"


async def test_both_readers_list_what_was_registered_on_a_chain(book, chain):
    tee_id = book.register("https://one.example", b"certificate", public_key_der=b"key", pcr_hash=b"\x07" * 32)
    book.register("https://two.example", b"another")
    first, second = chain.ask(active_tees(TEE_REGISTRY))
    assert (first, second) == await asked(book.node.url, CHAIN_ID, active_tees(TEE_REGISTRY))
    assert {name: value for name, value in asdict(first).items() if not name.endswith("_at")} == {
        "id": tee_id,
        "owner": book.owner.address,
        "payment_address": PAYEE,
        "endpoint": "https://one.example",
        "public_key_der": b"key",
        "certificate_der": b"certificate",
        "pcr_hash": "0x" + "07" * 32,
        "tee_type": 0,
        "is_enabled": True,
    }
    assert tee_id == "0x" + keccak256(b"key").hex()
    assert first.registered_at > 0
    assert "certificate" not in repr(first).replace("certificate_der", "")
    assert second.endpoint == "https://two.example"


def test_an_enclave_is_found_by_its_id_after_it_has_stopped(book, chain):
    tee_id = book.register("https://one.example", b"certificate", public_key_der=b"stopped")
    book.clear()
    assert chain.ask(active_tees(TEE_REGISTRY)) == ()
    found = chain.ask(registered_tee(TEE_REGISTRY, tee_id))
    assert (found.public_key_der, found.is_enabled) == (b"stopped", False)


def test_an_unknown_id_is_nobody(chain):
    assert chain.ask(registered_tee(TEE_REGISTRY, "0x" + "12" * 32)) is None


def test_an_address_without_a_contract_is_said_to_be_none(chain):
    with pytest.raises(RpcError, match="There is no contract at 0x7777"):
        chain.ask(active_tees(PAYEE))


@pytest.mark.parametrize("answer", ["0x1234", "0xzz", "1234", None, 7, {"a": 1}, "0x" + "ff" * 64])
def test_an_answer_of_another_shape_is_an_error_that_names_the_registry(answer):
    question = active_tees(TEE_REGISTRY)
    assert isinstance(next(question), RpcRequest)
    with pytest.raises(RpcError, match=f"{TEE_REGISTRY} cannot be read"):
        question.send(answer)
