from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from pydantic import SecretStr

from opengradient_x402.addresses import keccak256
from opengradient_x402.errors import InvalidPrivateKey, PolicyRefused
from opengradient_x402.keys import signer as signer_module
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.networks import PRESETS
from opengradient_x402.payment.challenge import PaymentTerms, parse_challenge
from opengradient_x402.payment.permits import SignedPayment, payment_header, signed_payload, terms_to_sign
from support.ledger_rows import entry

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "payment_signatures.json").read_text())["cases"]
CANARY = "c0ffee" + "5eed" * 14 + "01"
RESOURCE = {"url": "https://gateway.example/v1/chat/completions", "mimeType": "application/json"}


def terms_of(requirements: dict[str, Any]) -> PaymentTerms:
    document = {"x402Version": 2, "resource": RESOURCE, "accepts": [requirements]}
    return parse_challenge(base64.b64encode(json.dumps(document).encode()).decode()).terms[0]


def signed(case: dict[str, Any]) -> tuple[Authorization, dict[str, Any]]:
    """The authorization of a vector, and its signed payload."""
    terms, signer = terms_of(case["requirements"]), LocalSigner(case["private_key"])
    message = case["payload"].get("permit2Authorization") or case["payload"]["authorization"]
    network = replace(PRESETS["base"], chain_id=terms.chain_id)
    authorization = entry(
        payer=signer.address,
        nonce=int(message["nonce"], 0),
        signed=(terms_to_sign(terms, network=network, now_s=case["signed_at"]),),
    )
    return authorization, signed_payload(authorization, accepted=terms, signer=signer, network=network)


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['scheme']}" for i, case in enumerate(CASES)])
def test_payloads_are_byte_identical_to_the_official_client(case, implementation):
    authorization, payload = signed(case)
    assert authorization.payer == case["address"]
    assert json.dumps(payload) == json.dumps(case["payload"])
    assert authorization.deadline == case["signed_at"] + case["requirements"]["maxTimeoutSeconds"]


def test_the_vectors_hold_every_way_to_pay():
    assert {case["scheme"] for case in CASES} == {"upto", "exact-permit2", "exact-eip3009"}


def test_the_header_carries_the_accepted_terms_verbatim_as_compact_json():
    requirements = {**CASES[0]["requirements"], "unknown": {"kept": [1, "é", None]}}
    _, payload = signed({**CASES[0], "requirements": requirements})
    accepted = terms_of(requirements)
    header = payment_header(payload, accepted=accepted, resource=RESOURCE, extensions={"x": {"y": 1}})
    content = base64.b64decode(header, validate=True)
    assert json.loads(content) == {
        "x402Version": 2,
        "payload": payload,
        "accepted": requirements,
        "resource": RESOURCE,
        "extensions": {"x": {"y": 1}},
    }
    assert b": " not in content
    plain = payment_header(payload, accepted=accepted, resource=RESOURCE)
    assert "extensions" not in json.loads(base64.b64decode(plain))


def test_terms_of_another_chain_are_never_signed():
    with pytest.raises(PolicyRefused, match="eip155:8453 only"):
        terms_to_sign(terms_of(CASES[0]["requirements"]), network=PRESETS["base"], now_s=0)


def test_lower_case_terms_sign_the_same_digest():
    requirements = CASES[0]["requirements"]
    lower = {**requirements, "payTo": requirements["payTo"].lower(), "asset": requirements["asset"].lower()}
    _, payload = signed({**CASES[0], "requirements": lower})
    assert payload == CASES[0]["payload"]


def test_neither_an_authorization_nor_a_signed_payment_shows_the_signature():
    authorization, payload = signed(CASES[0])
    accepted = terms_of(CASES[0]["requirements"])
    header = payment_header(payload, accepted=accepted, resource=RESOURCE)
    shown = repr(SignedPayment(authorization=authorization, accepted=accepted, header=header)) + repr(authorization)
    assert CASES[0]["payload"]["signature"][2:40] not in shown
    assert header[:40] not in shown


def test_a_call_has_one_nonce_and_other_calls_and_keys_have_others():
    one, other = LocalSigner("11" * 32), LocalSigner("22" * 32)
    assert one.nonce_for("call-1") == LocalSigner("0x" + "11" * 32).nonce_for("call-1")
    nonces = {signer.nonce_for(f"call-{i}") for signer in (one, other) for i in range(100)}
    assert len(nonces) == 200
    assert all(0 <= nonce < 2**256 for nonce in nonces)
    assert max(nonces).bit_length() > 248


def test_nonces_are_the_same_in_every_release():
    # A call that is signed again after an upgrade must get its old nonce, or it could be paid twice.
    assert LocalSigner("11" * 32).nonce_for("call-1") == NONCE_OF_CALL_1


NONCE_OF_CALL_1 = 58477858684583060079933034781024431548062893253028784591224418796041802857389


def test_signatures_are_canonical_and_deterministic(implementation):
    signer = LocalSigner("33" * 32)
    for i in range(20):
        digest = keccak256(bytes([i]))
        signature = signer.sign_digest(digest)
        assert signature == signer.sign_digest(digest)
        assert len(signature) == 65
        assert signature[64] in (27, 28)
        assert int.from_bytes(signature[32:64], "big") <= signer_module._CURVE_ORDER // 2


def test_each_way_to_sign_gives_the_signature_of_eth_account(implementation):
    seeds = [keccak256(bytes([i])) for i in range(40)]
    for secret, digest in zip(seeds, [b"\0" * 32, b"\xff" * 32, *map(keccak256, seeds)], strict=False):
        expected = Account.unsafe_sign_hash(digest, secret)
        assert LocalSigner(secret).sign_digest(digest) == expected.signature
        assert LocalSigner(secret).address == Account.from_key(secret).address


def test_only_digests_are_signed():
    with pytest.raises(ValueError, match="32 bytes"):
        LocalSigner("33" * 32).sign_digest(b"a message")


@pytest.mark.parametrize(
    "key",
    [
        "11" * 32,
        "0x" + "11" * 32,
        "0X" + "11" * 32,
        " 0x" + "11" * 32 + "\n",
        f'"0x{"11" * 32}"',
        f"'{'11' * 32}'",
        b"\x11" * 32,
        bytearray(b"\x11" * 32),
        SecretStr("0x" + "11" * 32),
        memoryview(b"\x11" * 32),
        f"0x{'11' * 32}\n".encode(),
        f"\ufeff0x{'11' * 32}",
        f"\u201c0x{'11' * 32}\u201d",
        f"`{'11' * 32}`",
        f'"0x{"11" * 32}",',
        f"\u00a0{'11' * 32};",
    ],
    ids=range(16),
)
def test_a_key_is_accepted_in_its_usual_forms(key):
    assert LocalSigner(key).address == "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "0x",
        "0X" + CANARY[:-1],
        CANARY[:-1],
        CANARY + "0",
        CANARY[:-2] + "zz",
        CANARY[:-2] + "\u0663\u0663",
        "00" * 32,
        "ff" * 32,
        f"{signer_module._CURVE_ORDER:064x}",
        bytes.fromhex(CANARY)[1:],
        int(CANARY, 16),
        None,
    ],
    ids=range(13),
)
def test_a_bad_key_is_refused_and_not_repeated(key):
    with pytest.raises(InvalidPrivateKey, match="OG_PRIVATE_KEY") as caught:
        LocalSigner(key)
    report = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert CANARY[:24] not in report
    assert str(int(CANARY, 16))[:24] not in report


def test_the_key_leaves_through_no_channel(implementation, caplog):
    signer = LocalSigner(CANARY)
    authorization = replace(signed(CASES[0])[0], payer=signer.address)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").debug("%s %r", signer, {"signer": signer})
    seen = [repr(signer), str(signer), f"{signer}", repr([signer]), caplog.text, repr(authorization)]
    seen += [repr(getattr(signer, name)) for name in dir(signer) if not name.startswith("__")]
    seen.append(repr({name: getattr(signer, name) for name in type(signer).__slots__ if hasattr(signer, name)}))
    assert CANARY[:16] not in "".join(seen).lower()
    assert str(int(CANARY, 16))[:16] not in "".join(seen)
    assert not hasattr(signer, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused_with_the_remedy(protocol):
    with pytest.raises(TypeError, match="OG_PRIVATE_KEY"):
        pickle.dumps({"signer": LocalSigner(CANARY)}, protocol=protocol)


def test_copies_are_the_signer_itself():
    signer = LocalSigner(CANARY)
    assert copy.copy(signer) is copy.deepcopy(signer) is signer
    assert copy.deepcopy({"nested": [signer]})["nested"][0] is signer


def test_importing_and_signing_load_neither_web3_nor_eth_account():
    program = (
        "import sys, opengradient_x402, opengradient_x402.keys.signer as s; opengradient_x402.Payments;"
        "opengradient_x402.Wallet; opengradient_x402.RegistryGateway; s.LocalSigner('11' * 32).sign_digest(bytes(32));"
        "print([m for m in ('web3', 'eth_account', 'eth_abi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
