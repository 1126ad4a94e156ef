"""Attestation documents: those under the pinned root verify, and every wrong one has its own verdict."""

from __future__ import annotations

import random
import time

import cbor2
import pytest

from opengradient_devnet.faults import ForgeAttestation
from opengradient_devnet.gateway.proofs.nitro import PCRS, Hypervisor
from opengradient_x402.addresses import keccak256
from opengradient_x402.networks import AWS_NITRO_ROOT_SHA256
from opengradient_x402.proofs.nitro import DocumentVerdict, check_document

CERTIFICATE, KEY, NONCE = b"a certificate", b"a key", bytes(range(20))
IMAGE = "0x" + keccak256(PCRS[0] + PCRS[1] + PCRS[2]).hex()
NOW_S = int(time.time())
HYPERVISOR = Hypervisor(certificate_der=CERTIFICATE, public_key_der=KEY)


def made(part=None, *, timestamp_s=NOW_S):
    fault = None if part is None else ForgeAttestation(part=part)
    return HYPERVISOR.document(nonce=NONCE, timestamp_s=timestamp_s, fault=fault)


def checked(content, **other):
    expected = {
        "root_sha256": HYPERVISOR.root_sha256,
        "now_s": NOW_S,
        "nonce": NONCE,
        "certificate_der": CERTIFICATE,
        "public_key_der": KEY,
        "pcr_hashes": [IMAGE],
    }
    return check_document(content, **expected | other)


def test_a_document_that_fits_in_everything_is_valid_and_read():
    check = checked(made())
    assert check.is_valid
    assert (check.document.pcr_hash, check.document.timestamp_s, check.document.nonce) == (IMAGE, NOW_S, NONCE)


def test_a_document_is_valid_with_and_without_its_cose_tag():
    assert checked(b"\xd2" + made()).is_valid


WRONG = {
    "root": "wrong_root",
    "chain": "wrong_chain",
    "signature": "wrong_signature",
    "nonce": "wrong_nonce",
    "stale": "stale",
    "debug": "debug_mode",
    "image": "wrong_image",
    "certificate": "wrong_certificate",
    "key": "wrong_key",
}


@pytest.mark.parametrize("part", WRONG)
def test_each_wrong_document_has_its_verdict(part):
    assert checked(made(part)).verdict == WRONG[part]


def test_debug_mode_is_refused_also_where_every_image_is_allowed():
    assert checked(made("debug"), pcr_hashes=None).verdict == "debug_mode"


def test_a_document_of_a_devnet_says_nothing_under_the_root_of_aws():
    assert checked(made(), root_sha256=AWS_NITRO_ROOT_SHA256).verdict == "wrong_root"


def test_evidence_is_checked_at_its_own_time_and_must_lie_within_its_certificates():
    earlier, before_the_certificates = NOW_S - 3600, NOW_S - 10 * 3600
    assert checked(made(timestamp_s=earlier), now_s=None).is_valid
    assert checked(made(timestamp_s=before_the_certificates), now_s=None).verdict == "wrong_time"
    assert checked(made(), now_s=NOW_S + 60 * 86_400).verdict == "wrong_time"


def test_no_flipped_bit_leaves_a_document_valid():
    content = made()
    chance = random.Random(13)
    for bit in chance.sample(range(8 * len(content)), 400):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not check_document(bytes(flipped), root_sha256=HYPERVISOR.root_sha256).is_valid, bit


def test_no_cut_and_no_addition_leaves_a_document_valid():
    content = made()
    assert all(not checked(content[:size]).is_valid for size in range(0, len(content), 61))
    assert checked(content + b"\x00").verdict == "unreadable"


def inner(**members):
    outer = cbor2.loads(made())
    outer[2] = cbor2.dumps(cbor2.loads(outer[2]) | members)
    return cbor2.dumps(outer)


STRANGE = {
    "nothing": b"",
    "a number": b"\x00",
    "a list without end": b"\x9f",
    "nested deep": b"\x81" * 5000 + b"\x00",
    "a huge length": b"\x84\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "a map as a key": b"\xa1\xa0\x00",
    "a big number": b"\xc2\x49\x01" + bytes(8),
    "a regular expression": b"\xd8\x23\x65(a+)+",
    "a set": b"\xd9\x01\x02\x81\x00",
    "shared with itself": b"\xd8\x1c\x81\xd8\x1d\x00",
    "too long": b"\x00" * 40_000,
    "no time": inner(timestamp="now"),
    "a time that no calendar has": inner(timestamp=2**63),
    "truth as a time": inner(timestamp=True),
    "PCRs as a list": inner(pcrs=[bytes(48)] * 16),
    "short PCRs": inner(pcrs={0: b"1", 1: b"2", 2: b"3"}),
    "no PCR2": inner(pcrs={0: bytes(48), 1: bytes(48)}),
    "no chain": inner(cabundle=[]),
    "a long chain": inner(cabundle=[b"x"] * 100),
    "a chain of text": inner(cabundle=["root"]),
    "a nonce of text": inner(nonce="nonce"),
    "a list as a name": inner(module_id=[]),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_strange_bytes_are_unreadable_and_end_nothing(content):
    assert checked(content).verdict == "unreadable"


def test_certificates_of_strangers_are_read_no_further_than_the_root_vouches_for_them():
    root = cbor2.loads(cbor2.loads(made())[2])["cabundle"][0]
    assert checked(inner(cabundle=[root, b"\x30\x00"])).verdict == "wrong_chain"
    assert checked(inner(certificate=b"\x30\x00")).verdict == "wrong_chain"
    assert checked(inner(certificate=root)).verdict == "wrong_chain"
    assert checked(inner(cabundle=[root])).verdict == "wrong_chain"


def test_user_data_of_another_form_binds_nothing():
    outer = cbor2.loads(made())
    assert len(cbor2.loads(outer[2])["user_data"]) == 68
    signed = HYPERVISOR._signed(cbor2.dumps(cbor2.loads(outer[2]) | {"user_data": b"dummy"}))
    assert checked(signed).verdict == "wrong_certificate"
    assert checked(signed, certificate_der=None).verdict == "wrong_key"


def test_every_verdict_has_a_sentence():
    assert all(verdict.sentence for verdict in DocumentVerdict)
