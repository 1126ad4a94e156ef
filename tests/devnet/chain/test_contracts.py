"""The contracts against what the originals promise: interfaces, custom errors, replay, every way to sign."""

from __future__ import annotations

import secrets
import time

import pytest
from eth_utils.crypto import keccak

from opengradient_devnet.chain.chain import RpcError
from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.contracts import (
    ADDRESSES,
    EXACT_PROXY,
    OPG,
    PERMIT2,
    RELAY,
    TEE_REGISTRY,
    UPTO_PROXY,
    artifacts,
    contract,
    revert_reason,
    signature_of,
)
from opengradient_devnet.contracts.build import sources_sha256
from support.chain_parties import (
    deploy_wallet,
    eip3009_authorization,
    funded_party,
    new_party,
    opg_typed_data,
    permit2_authorization,
    requirements,
    sign_eip3009,
    sign_permit,
    sign_permit2,
)

TOKEN, PROXY, EXACT = contract("OPG"), contract("UptoProxy"), contract("ExactProxy")
AMOUNT = 10**17
TRANSFER_TYPES = "address,address,uint256,uint256,uint256,bytes32"
BY_PARTS = f"transferWithAuthorization({TRANSFER_TYPES},uint8,bytes32,bytes32)"
BY_BYTES = f"transferWithAuthorization({TRANSFER_TYPES},bytes)"
ZERO = "0x" + "00" * 20


@pytest.fixture(scope="module")
def chain():
    return PyEvmChain()


@pytest.fixture(scope="module")
def payer(chain):
    return funded_party(chain, approved=True)


@pytest.fixture(scope="module")
def facilitator(chain):
    return funded_party(chain)


@pytest.fixture(scope="module")
def payee():
    return new_party()


@pytest.fixture
def wanted(chain, facilitator, payee):
    return requirements(chain, payee=payee.address, facilitator=facilitator.address, amount=AMOUNT)


def settle_arguments(authorization, signature, amount=AMOUNT):
    permitted, witness = authorization["permitted"], authorization["witness"]
    permit = (
        (permitted["token"], int(permitted["amount"])),
        int(authorization["nonce"]),
        int(authorization["deadline"]),
    )
    owner, valid_after = authorization["from"], int(witness["validAfter"])
    if "facilitator" not in witness:
        return permit, owner, (witness["to"], valid_after), signature
    return permit, amount, owner, (witness["to"], witness["facilitator"], valid_after), signature


def reason(chain, *, to, data, sender):
    try:
        chain.call(to=to, data=data, sender=sender)
    except RpcError as exc:
        return revert_reason(bytes.fromhex(exc.data[2:]))
    return "ok"


# Interfaces


def test_the_shipped_artifacts_were_built_from_these_sources():
    assert artifacts()["sources_sha256"] == sources_sha256(), "run opengradient_devnet/contracts/build.py"
    assert artifacts()["compiler"].startswith("vyper 0.4.3")


@pytest.mark.parametrize(
    ("name", "function", "selector"),
    [
        # From the verified sources of the originals (Etherscan, Basescan, EIPs 20, 2612 and 3009).
        ("OPG", "transfer", "a9059cbb"),
        ("OPG", "transferFrom", "23b872dd"),
        ("OPG", "approve", "095ea7b3"),
        ("OPG", "permit", "d505accf"),
        ("OPG", BY_PARTS, "e3ee160e"),
        ("OPG", BY_BYTES, "cf092995"),
        ("OPG", "receiveWithAuthorization", "ef55bec6"),
        ("OPG", "cancelAuthorization", "5a049a70"),
        ("OPG", "authorizationState", "e94a0102"),
        ("OPG", "DOMAIN_SEPARATOR", "3644e515"),
        ("Permit2", "permitWitnessTransferFrom", "137c29fe"),
        ("Permit2", "permitTransferFrom", "30f28b7a"),
        ("Permit2", "nonceBitmap", "4fe02b44"),
        ("Permit2", "invalidateUnorderedNonces", "3ff9dcb1"),
        ("Multicall3", "tryAggregate", "bce38bd7"),
        ("Multicall3", "tryBlockAndAggregate", "399542e9"),
        ("Multicall3", "getBlockHash", "ee82ac5e"),
        ("Multicall3", "getBlockNumber", "42cbb15c"),
        ("Multicall3", "getCurrentBlockTimestamp", "0f28c97d"),
        ("SmartWallet", "isValidSignature", "1626ba7e"),
    ],
)
def test_functions_have_the_selectors_of_the_originals(name, function, selector):
    assert contract(name).selector(function).hex() == selector


@pytest.mark.parametrize(
    ("name", "signature", "names"),
    [
        ("OPG", "Transfer(address,address,uint256)", ["from", "to", "value"]),
        ("OPG", "Approval(address,address,uint256)", ["owner", "spender", "value"]),
        ("OPG", "AuthorizationUsed(address,bytes32)", ["authorizer", "nonce"]),
        ("OPG", "AuthorizationCanceled(address,bytes32)", ["authorizer", "nonce"]),
        ("Permit2", "UnorderedNonceInvalidation(address,uint256,uint256)", ["owner", "word", "mask"]),
        ("UptoProxy", "Settled()", []),
        ("ExactProxy", "SettledWithPermit()", []),
        ("Relay", "BatchSettlement(bytes32,uint256,bytes)", ["merkleRoot", "batchSize", "walrusBlobId"]),
        (
            "Relay",
            "IndividualSettlement(bytes32,address,bytes32,bytes32,uint256,bytes,bytes)",
            ["teeId", "ethAddress", "inputHash", "outputHash", "timestamp", "walrusBlobId", "signature"],
        ),
    ],
)
def test_events_have_the_topics_and_names_of_the_originals(name, signature, names):
    entries = [entry for entry in contract(name).abi if entry["type"] == "event"]
    (event,) = (entry for entry in entries if signature_of(entry) == signature)
    assert [item["name"] for item in event["inputs"]] == names
    assert contract(name).topic(signature) == "0x" + keccak(text=signature).hex()


def test_both_forms_of_transfer_with_authorization_are_in_the_abi_under_their_usual_names():
    forms = [entry for entry in TOKEN.abi if entry.get("name") == "transferWithAuthorization"]
    assert {signature_of(form) for form in forms} == {BY_PARTS, BY_BYTES}
    for form in forms:
        names = [item["name"] for item in form["inputs"]]
        assert names[:6] == ["from", "to", "value", "validAfter", "validBefore", "nonce"]


def test_every_contract_is_at_its_address_and_calls_itself_opg(chain):
    for name, address in ADDRESSES.items():
        assert chain.code(address) == contract(name).runtime
    assert TOKEN.decode("name", chain.call(to=OPG, data=TOKEN.encode("name"))) == ("OpenGradient",)
    assert TOKEN.decode("version", chain.call(to=OPG, data=TOKEN.encode("version"))) == ("1",)
    assert TOKEN.decode("symbol", chain.call(to=OPG, data=TOKEN.encode("symbol"))) == ("OPG",)
    assert TOKEN.decode("decimals", chain.call(to=OPG, data=TOKEN.encode("decimals"))) == (18,)


# Permit2 and the proxies


def test_a_settlement_moves_the_amount_and_logs_transfer_and_settled(chain, payer, facilitator, payee, wanted):
    authorization = permit2_authorization(payer.address, wanted)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    before = chain.token_balance(payer.address), chain.token_balance(payee.address)
    data = PROXY.encode("settle", *settle_arguments(authorization, signature, 123))
    receipt = chain.send(facilitator, to=UPTO_PROXY, data=data)
    after = chain.token_balance(payer.address), chain.token_balance(payee.address)
    assert (after[0] - before[0], after[1] - before[1]) == (-123, 123)
    transfer, settled = receipt["logs"]
    parties = {"from": payer.address.lower(), "to": payee.address.lower(), "value": 123}
    assert TOKEN.decode_log(transfer) == {"event": "Transfer", **parties}
    assert (settled["address"], settled["topics"]) == (UPTO_PROXY, [PROXY.topic("Settled")])
    assert int(receipt["gasUsed"], 16) < 100_000


def test_the_nonce_bit_is_set_and_a_replay_is_refused(chain, payer, facilitator, wanted):
    authorization = permit2_authorization(payer.address, wanted)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    data = PROXY.encode("settle", *settle_arguments(authorization, signature, 1))
    assert chain.send(facilitator, to=UPTO_PROXY, data=data)["status"] == "0x1"
    nonce = int(authorization["nonce"])
    bitmap = chain.call(to=PERMIT2, data=contract("Permit2").encode("nonceBitmap", payer.address, nonce >> 8))
    assert int.from_bytes(bitmap, "big") >> (nonce & 255) & 1
    assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) == "InvalidNonce()"
    assert chain.send(facilitator, to=UPTO_PROXY, data=data)["status"] == "0x0"


def test_a_cancelled_nonce_cannot_be_settled(chain, payer, facilitator, wanted):
    authorization = permit2_authorization(payer.address, wanted)
    nonce = int(authorization["nonce"])
    permit2 = contract("Permit2")
    cancel = permit2.encode("invalidateUnorderedNonces", nonce >> 8, 1 << (nonce & 255))
    (log,) = chain.send(payer, to=PERMIT2, data=cancel)["logs"]
    assert permit2.decode_log(log) == {
        "event": "UnorderedNonceInvalidation",
        "owner": payer.address.lower(),
        "word": nonce >> 8,
        "mask": 1 << (nonce & 255),
    }
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    data = PROXY.encode("settle", *settle_arguments(authorization, signature))
    assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) == "InvalidNonce()"


def shortened(signature):
    """EIP-2098: the parity moves into the top bit of s."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + s.to_bytes(32, "big")


@pytest.mark.parametrize(
    ("changes", "amount", "tamper", "expected"),
    [
        ({}, AMOUNT, {}, "ok"),
        ({}, AMOUNT + 1, {}, "AmountExceedsPermitted()"),
        ({}, 0, {}, "InvalidAmount()"),
        ({"facilitator": "0x" + "22" * 20}, AMOUNT, {}, "UnauthorizedFacilitator()"),
        ({"from": ZERO}, AMOUNT, {}, "InvalidOwner()"),
        ({"to": ZERO}, AMOUNT, {}, "InvalidDestination()"),
        ({"validAfter": str(2**40)}, AMOUNT, {}, "PaymentTooEarly()"),
        ({"deadline": "5"}, AMOUNT, {}, "SignatureExpired(5)"),
        ({}, AMOUNT, {"to": "0x" + "33" * 20}, "InvalidSigner()"),
        ({}, AMOUNT, {"amount": str(2 * AMOUNT)}, "InvalidSigner()"),
        ({}, AMOUNT, {"token": UPTO_PROXY}, "InvalidSigner()"),
        ({"spender": EXACT_PROXY}, AMOUNT, {}, "InvalidSigner()"),
    ],
)
def test_the_upto_proxy_refuses_with_the_errors_of_the_original(
    chain, payer, facilitator, wanted, changes, amount, tamper, expected
):
    authorization = permit2_authorization(payer.address, wanted, **changes)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    for key, value in tamper.items():
        parts = (authorization, authorization["permitted"], authorization["witness"])
        next(part for part in parts if key in part)[key] = value
    data = PROXY.encode("settle", *settle_arguments(authorization, signature, amount))
    assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (shortened, {"ok"}),
        (lambda signature: signature[:60], {"InvalidSignatureLength()"}),
        (lambda _: b"", {"InvalidSignatureLength()"}),
        (lambda signature: signature[:64] + b"\x09", {"InvalidSignature()"}),
        # About half of all numbers are no point's coordinate, and nobody's signature at all.
        (lambda signature: secrets.token_bytes(32) + signature[32:], {"InvalidSigner()", "InvalidSignature()"}),
    ],
)
def test_permit2_takes_both_encodings_of_a_signature_and_no_other(chain, payer, facilitator, wanted, changed, expected):
    authorization = permit2_authorization(payer.address, wanted)
    signature = changed(sign_permit2(payer, authorization, chain_id=chain.chain_id))
    data = PROXY.encode("settle", *settle_arguments(authorization, signature))
    assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) in expected


def test_permit2_itself_refuses_more_than_was_signed(chain, payer, wanted):
    authorization = permit2_authorization(payer.address, wanted)
    permit, _, owner, _, _ = settle_arguments(authorization, b"")
    data = contract("Permit2").encode("permitTransferFrom", permit, (OPG, AMOUNT + 1), owner, b"")
    assert reason(chain, to=PERMIT2, data=data, sender=payer.address) == f"InvalidAmount({AMOUNT})"


def test_anyone_may_send_an_exact_settlement_and_it_takes_the_whole_amount(chain, payer, payee):
    wanted = requirements(chain, payee=payee.address, facilitator=payer.address, scheme="exact", amount=AMOUNT)
    authorization = permit2_authorization(payer.address, wanted)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    before = chain.token_balance(payee.address)
    stranger = funded_party(chain, opg_atomic=0)
    data = EXACT.encode("settle", *settle_arguments(authorization, signature))
    assert chain.send(stranger, to=EXACT_PROXY, data=data)["logs"][-1]["topics"] == [EXACT.topic("Settled")]
    assert chain.token_balance(payee.address) - before == AMOUNT
    assert reason(chain, to=EXACT_PROXY, data=data, sender=stranger.address) == "InvalidNonce()"


def test_a_contract_wallet_pays_with_its_owners_signature_and_with_no_other(chain, payer, facilitator, payee, wanted):
    wallet = deploy_wallet(chain, payer)
    authorization = permit2_authorization(wallet, wanted)
    for signer, expected in ((facilitator, "InvalidContractSignature()"), (payer, "ok")):
        signature = sign_permit2(signer, authorization, chain_id=chain.chain_id)
        data = PROXY.encode("settle", *settle_arguments(authorization, signature))
        assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) == expected
    assert chain.send(facilitator, to=UPTO_PROXY, data=data)["status"] == "0x1"
    assert chain.token_balance(wallet) == 10**19 - AMOUNT


# EIP-2612


def permit_tuple(chain, owner, value, deadline, signer=None):
    signature = sign_permit(chain, signer or owner, spender=PERMIT2, value=value, deadline=deadline)
    return (value, deadline, signature[:32], signature[32:64], signature[64])


def test_a_permit_signature_takes_the_place_of_an_approval(chain, facilitator, payee, wanted):
    newcomer = funded_party(chain, approved=False)
    authorization = permit2_authorization(newcomer.address, wanted)
    signature = sign_permit2(newcomer, authorization, chain_id=chain.chain_id)
    arguments = settle_arguments(authorization, signature, 7)
    plain = PROXY.encode("settle", *arguments)
    unapproved = reason(chain, to=UPTO_PROXY, data=plain, sender=facilitator.address)
    assert unapproved == "ERC20: insufficient allowance"
    permit = permit_tuple(chain, newcomer, AMOUNT, int(time.time()) + 60)
    data = PROXY.encode("settleWithPermit", permit, *arguments)
    receipt = chain.send(facilitator, to=UPTO_PROXY, data=data)
    assert receipt["logs"][-1]["topics"] == [PROXY.topic("SettledWithPermit")]
    assert chain.token_balance(newcomer.address) == 100 * 10**18 - 7


def test_a_permit_for_another_amount_is_refused(chain, payer, facilitator, wanted):
    authorization = permit2_authorization(payer.address, wanted)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    permit = permit_tuple(chain, payer, AMOUNT + 1, int(time.time()) + 60)
    data = PROXY.encode("settleWithPermit", permit, *settle_arguments(authorization, signature))
    assert reason(chain, to=UPTO_PROXY, data=data, sender=facilitator.address) == "Permit2612AmountMismatch()"


def test_a_failing_permit_is_logged_with_its_reason_and_does_not_stop_an_approved_payer(
    chain, payer, facilitator, wanted
):
    authorization = permit2_authorization(payer.address, wanted)
    signature = sign_permit2(payer, authorization, chain_id=chain.chain_id)
    expired = permit_tuple(chain, payer, AMOUNT, 5)
    data = PROXY.encode("settleWithPermit", expired, *settle_arguments(authorization, signature, 1))
    receipt = chain.send(facilitator, to=UPTO_PROXY, data=data)
    assert receipt["status"] == "0x1"
    assert PROXY.decode_log(receipt["logs"][0]) == {
        "event": "EIP2612PermitFailedWithReason",
        "token": OPG.lower(),
        "owner": payer.address.lower(),
        "reason": "ERC20Permit: expired deadline",
    }


def test_a_permit_works_once_and_only_with_the_owners_signature(chain, payer):
    owner, spender, deadline = funded_party(chain), new_party().address, int(time.time()) + 60
    for signer, nonce, expected in (
        (payer, 0, "ERC20Permit: invalid signature"),
        (owner, 1, "ERC20Permit: invalid signature"),
        (owner, 0, "ok"),
    ):
        message = {"spender": spender, "value": 9, "deadline": deadline, "nonce": nonce}
        typed = sign_permit(chain, owner, **message)
        if signer is not owner:
            typed = sign_permit(chain, signer, **message)
        parts = (typed[64], typed[:32], typed[32:64])
        data = TOKEN.encode("permit", owner.address, spender, 9, deadline, *parts)
        assert reason(chain, to=OPG, data=data, sender=payer.address) == expected
    chain.send(payer, to=OPG, data=data)
    assert chain.call(to=OPG, data=TOKEN.encode("allowance", owner.address, spender))[-1] == 9
    assert reason(chain, to=OPG, data=data, sender=payer.address) == "ERC20Permit: invalid signature"


# EIP-3009


def eip3009_arguments(authorization):
    numbers = (int(authorization[key]) for key in ("value", "validAfter", "validBefore"))
    return (
        authorization["from"],
        authorization["to"],
        *numbers,
        bytes.fromhex(authorization["nonce"][2:]),
    )


@pytest.mark.parametrize("form", [BY_PARTS, BY_BYTES])
def test_both_forms_of_transfer_with_authorization_move_money_once(chain, payer, facilitator, wanted, form):
    receiver = new_party().address
    authorization = eip3009_authorization(payer.address, wanted, to=receiver)
    signature = sign_eip3009(chain, payer, authorization)
    parts = (signature[64], signature[:32], signature[32:64]) if form == BY_PARTS else (signature,)
    data = TOKEN.encode(form, *eip3009_arguments(authorization), *parts)
    receipt = chain.send(facilitator, to=OPG, data=data)
    assert [TOKEN.decode_log(log)["event"] for log in receipt["logs"]] == ["AuthorizationUsed", "Transfer"]
    assert chain.token_balance(receiver) == AMOUNT
    used = reason(chain, to=OPG, data=data, sender=facilitator.address)
    assert used == "authorization is used or canceled"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validBefore": "5"}, "authorization is expired"),
        ({"validAfter": str(2**40)}, "authorization is not yet valid"),
        ({"value": str(10**30)}, "ERC20: transfer amount exceeds balance"),
        ({"to": ZERO}, "ERC20: transfer to the zero address"),
    ],
)
def test_a_transfer_authorization_that_cannot_be_used_says_why(chain, payer, facilitator, wanted, changes, expected):
    authorization = eip3009_authorization(payer.address, wanted, **changes)
    signature = sign_eip3009(chain, payer, authorization)
    data = TOKEN.encode(BY_BYTES, *eip3009_arguments(authorization), signature)
    assert reason(chain, to=OPG, data=data, sender=facilitator.address) == expected


def test_a_stranger_signature_or_its_mirror_image_moves_nothing(chain, payer, facilitator, wanted):
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # secp256k1
    authorization = eip3009_authorization(payer.address, wanted)
    good = sign_eip3009(chain, payer, authorization)
    mirrored_s = (order - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    mirrored = good[:32] + mirrored_s + bytes([55 - good[64]])
    for signature in (sign_eip3009(chain, facilitator, authorization), mirrored, good[:64]):
        data = TOKEN.encode(BY_BYTES, *eip3009_arguments(authorization), signature)
        assert reason(chain, to=OPG, data=data, sender=facilitator.address) == "invalid signature"


def test_only_the_payee_may_use_a_receive_authorization(chain, payer, wanted):
    receiver = funded_party(chain, opg_atomic=0)
    authorization = eip3009_authorization(payer.address, wanted, to=receiver.address)
    signature = sign_eip3009(chain, payer, authorization, primary="ReceiveWithAuthorization")
    parts = (signature[64], signature[:32], signature[32:64])
    data = TOKEN.encode("receiveWithAuthorization", *eip3009_arguments(authorization), *parts)
    assert reason(chain, to=OPG, data=data, sender=payer.address) == "caller must be the payee"
    assert chain.send(receiver, to=OPG, data=data)["status"] == "0x1"
    assert chain.token_balance(receiver.address) == AMOUNT


def test_a_cancelled_authorization_cannot_be_used(chain, payer, facilitator, wanted):
    authorization = eip3009_authorization(payer.address, wanted)
    nonce = bytes.fromhex(authorization["nonce"][2:])
    fields = [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]
    message = {"authorizer": payer.address, "nonce": nonce}
    signature = payer.sign(opg_typed_data(chain, "CancelAuthorization", fields, message))
    parts = (signature[64], signature[:32], signature[32:64])
    cancel = TOKEN.encode("cancelAuthorization", payer.address, nonce, *parts)
    (log,) = chain.send(facilitator, to=OPG, data=cancel)["logs"]
    assert TOKEN.decode_log(log)["event"] == "AuthorizationCanceled"
    data = TOKEN.encode(BY_BYTES, *eip3009_arguments(authorization), sign_eip3009(chain, payer, authorization))
    cancelled = reason(chain, to=OPG, data=data, sender=facilitator.address)
    assert cancelled == "authorization is used or canceled"


def test_a_contract_wallet_can_authorize_a_transfer(chain, payer, facilitator, wanted):
    wallet = deploy_wallet(chain, payer)
    authorization = eip3009_authorization(wallet, wanted)
    signature = sign_eip3009(chain, payer, authorization)
    data = TOKEN.encode(BY_BYTES, *eip3009_arguments(authorization), signature)
    assert chain.send(facilitator, to=OPG, data=data)["status"] == "0x1"
    assert chain.token_balance(wallet) == 10**19 - AMOUNT


# Token, relay, registry, multicall


def test_the_token_keeps_its_books(chain):
    owner, spender, receiver = funded_party(chain, opg_atomic=100), funded_party(chain), new_party().address
    supply = chain.call(to=OPG, data=TOKEN.encode("totalSupply"))
    chain.send(owner, to=OPG, data=TOKEN.encode("approve", spender.address, 10))
    pull = TOKEN.encode("transferFrom", owner.address, receiver, 7)
    chain.send(spender, to=OPG, data=pull)
    assert (chain.token_balance(owner.address), chain.token_balance(receiver)) == (93, 7)
    assert reason(chain, to=OPG, data=pull, sender=spender.address) == "ERC20: insufficient allowance"
    assert chain.call(to=OPG, data=TOKEN.encode("totalSupply")) == supply
    too_much = TOKEN.encode("mint", receiver, 10**24 + 1)
    assert reason(chain, to=OPG, data=too_much, sender=owner.address) == "faucet limit"
    assert reason(chain, to=OPG, data=b"\x12\x34\x56\x78", sender=owner.address) == "unknown function"


def test_the_relay_logs_batches_and_single_records(chain):
    relay, operator = contract("Relay"), funded_party(chain, opg_atomic=0)
    root, tee_id = keccak(text="root"), keccak(text="tee")
    (batch,) = chain.send(operator, to=RELAY, data=relay.encode("batchSettle", root, 3, b"blob"))["logs"]
    fields = {"merkleRoot": root, "batchSize": 3, "walrusBlobId": b"blob"}
    assert relay.decode_log(batch) == {"event": "BatchSettlement", **fields}
    arguments = (tee_id, root, root, 5, operator.address, b"blob", b"s" * 256)
    (single,) = chain.send(operator, to=RELAY, data=relay.encode("settleIndividual", *arguments))["logs"]
    assert relay.decode_log(single) == {
        "event": "IndividualSettlement",
        "teeId": tee_id,
        "ethAddress": operator.address.lower(),
        "inputHash": root,
        "outputHash": root,
        "timestamp": 5,
        "walrusBlobId": b"blob",
        "signature": b"s" * 256,
    }


def test_the_relay_checks_merkle_proofs_with_sorted_pairs(chain):
    relay = contract("Relay")
    low, high = sorted([keccak(b"1"), keccak(b"2")])
    root = keccak(low + high)
    for leaf, sibling in ((low, high), (high, low)):
        answer = chain.call(to=RELAY, data=relay.encode("verifyProof", [sibling], root, leaf))
        assert relay.decode("verifyProof", answer) == (True,)
    wrong = chain.call(to=RELAY, data=relay.encode("verifyProof", [low], root, low))
    assert relay.decode("verifyProof", wrong) == (False,)


def test_the_registry_lists_the_enclaves_that_are_enabled(chain):
    registry, operator = contract("TEERegistry"), funded_party(chain, opg_atomic=0)
    public_key, certificate = secrets.token_bytes(294), secrets.token_bytes(1400)
    ohttp = (1, 32, 1, 3, b"\1" * 32, b"x" * 40, 0)
    endpoint, pcr = "https://127.0.0.1:8443", keccak(text="pcr")
    arguments = (operator.address, endpoint, public_key, certificate, pcr, 0, ohttp)
    chain.send(operator, to=TEE_REGISTRY, data=registry.encode("registerTEE", *arguments))
    tee_id = keccak(public_key)

    def active():
        answer = chain.call(to=TEE_REGISTRY, data=registry.encode("getActiveTEEs", 0))
        return registry.decode("getActiveTEEs", answer)[0]

    (entry,) = active()
    owner = operator.address.lower()
    assert entry[:8] == (owner, owner, endpoint, public_key, certificate, pcr, 0, True)
    assert entry[10][:6] == ohttp[:6]
    stranger = funded_party(chain, opg_atomic=0)
    disable = registry.encode("setEnabled", tee_id, False)
    refused = reason(chain, to=TEE_REGISTRY, data=disable, sender=stranger.address)
    assert refused == "not the owner"
    chain.send(operator, to=TEE_REGISTRY, data=disable)
    assert active() == ()
    unknown = registry.encode("getTEE", b"\0" * 32)
    assert reason(chain, to=TEE_REGISTRY, data=unknown, sender=operator.address) == "unknown TEE"


def test_multicall_collects_answers_and_failures(chain, payer):
    multicall = contract("Multicall3")
    calls = [
        (OPG, TOKEN.encode("balanceOf", payer.address)),
        (OPG, TOKEN.encode("transferFrom", payer.address, payer.address, 1)),
    ]
    answer = chain.call(to=multicall.address, data=multicall.encode("tryAggregate", False, calls))
    ((balance_ok, balance), (moved, why)) = multicall.decode("tryAggregate", answer)[0]
    assert (balance_ok, int.from_bytes(balance, "big")) == (True, chain.token_balance(payer.address))
    assert (moved, revert_reason(why)) == (False, "ERC20: insufficient allowance")
    strict = multicall.encode("tryAggregate", True, calls)
    assert reason(chain, to=multicall.address, data=strict, sender=payer.address) == "Multicall3: call failed"


def test_multicall_reads_many_answers_together_with_their_block(chain, payer):
    multicall = contract("Multicall3")
    head = chain.rpc("eth_getBlockByNumber", ["latest", False])
    reads = [
        (multicall.address, multicall.encode("getCurrentBlockTimestamp")),
        (multicall.address, multicall.encode("getBlockHash", int(head["number"], 16))),
        (OPG, TOKEN.encode("transferFrom", payer.address, payer.address, 1)),
        *[(OPG, TOKEN.encode("balanceOf", payer.address))] * 300,
    ]
    answer = chain.call(to=multicall.address, data=multicall.encode("tryBlockAndAggregate", False, reads))
    number, _, (now, at_head, refused, *balances) = multicall.decode("tryBlockAndAggregate", answer)
    assert number == int(head["number"], 16) + 1
    assert int.from_bytes(now[1], "big") >= int(head["timestamp"], 16)
    assert "0x" + at_head[1].hex() == head["hash"]
    assert not refused[0]
    assert {int.from_bytes(balance, "big") for _, balance in balances} == {chain.token_balance(payer.address)}
