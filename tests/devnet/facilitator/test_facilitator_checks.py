"""The facilitator's verdicts: every reason code, in the protocol's order, and what a settlement does."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from opengradient_devnet.chain.chain import sign_transaction
from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.contracts import EXACT_PROXY, OPG, PERMIT2, UPTO_PROXY, contract
from opengradient_devnet.facilitator.digests import eip3009_digest, permit2_digest, recover
from opengradient_devnet.facilitator.facilitator import Facilitator
from opengradient_devnet.facilitator.payments import PaymentMalformed, parse_payment
from support.chain_parties import (
    deploy_wallet,
    eip3009_payment,
    funded_party,
    new_party,
    permit2_payment,
    requirements,
    sign_permit,
)

AMOUNT = 10**17
STRANGER = "0x" + "22" * 20
VECTORS = Path(__file__).parents[2] / "vectors" / "payment_signatures.json"


@pytest.fixture(scope="module")
def chain():
    return PyEvmChain()


@pytest.fixture(scope="module")
def facilitator(chain):
    return Facilitator(chain, account=funded_party(chain, opg_atomic=0))


@pytest.fixture(scope="module")
def payer(chain):
    return funded_party(chain, approved=True)


@pytest.fixture(scope="module")
def payee():
    return new_party().address


@pytest.fixture
def wanted(chain, facilitator, payee):
    """Terms by scheme and transfer method."""

    def make(scheme="upto", method="permit2", amount=AMOUNT):
        terms = {"scheme": scheme, "method": method, "amount": amount}
        return requirements(chain, payee=payee, facilitator=facilitator.address, **terms)

    return make


def pay(chain, payer, terms, **changes):
    permit2 = terms["extra"]["assetTransferMethod"] == "permit2"
    return (permit2_payment if permit2 else eip3009_payment)(chain, payer, terms, **changes)


WAYS = pytest.mark.parametrize(("scheme", "method"), [("upto", "permit2"), ("exact", "permit2"), ("exact", "eip3009")])


@WAYS
def test_a_good_payment_is_valid_settles_for_its_amount_and_only_once(
    chain, facilitator, payer, payee, wanted, scheme, method
):
    terms = wanted(scheme, method)
    payment = pay(chain, payer, terms)
    before = chain.token_balance(payer.address), chain.token_balance(payee)
    assert facilitator.verify(payment, terms).is_valid
    settled = facilitator.settle(payment, terms)
    assert (settled.success, settled.amount_atomic, settled.payer) == (True, AMOUNT, payer.address)
    receipt = chain.rpc("eth_getTransactionReceipt", [settled.transaction])
    assert int(receipt["blockNumber"], 16) == settled.block_number
    assert receipt["from"] == facilitator.address
    after = chain.token_balance(payer.address), chain.token_balance(payee)
    assert (after[0] - before[0], after[1] - before[1]) == (-AMOUNT, AMOUNT)
    again = facilitator.settle(payment, terms)
    used = "permit2_invalid_nonce" if method == "permit2" else "invalid_exact_evm_nonce_already_used"
    assert (again.success, again.reason, again.transaction) == (False, used, "")
    assert chain.token_balance(payee) == after[1]


def test_upto_takes_any_amount_up_to_the_signed_one(chain, facilitator, payer, payee, wanted):
    terms = wanted()
    before = chain.token_balance(payee)
    settled = facilitator.settle(pay(chain, payer, terms), terms, 7)
    assert (settled.success, settled.amount_atomic) == (True, 7)
    by_requirements = facilitator.settle(pay(chain, payer, terms), {**terms, "amount": "5"})
    assert (by_requirements.success, by_requirements.amount_atomic) == (True, 5)
    assert chain.token_balance(payee) - before == 12
    over = facilitator.settle(pay(chain, payer, terms), terms, AMOUNT + 1)
    assert over.reason == "invalid_upto_evm_payload_settlement_exceeds_amount"


def test_settling_nothing_sends_nothing_and_leaves_the_signature_usable(chain, facilitator, payer, wanted):
    terms = wanted()
    payment = pay(chain, payer, terms)
    block = chain.rpc("eth_blockNumber", [])
    nothing = facilitator.settle(payment, terms, 0)
    assert (nothing.success, nothing.transaction, nothing.amount_atomic) == (True, "", 0)
    assert int(chain.rpc("eth_blockNumber", []), 16) <= int(block, 16) + 1
    assert facilitator.settle(payment, terms, 1).success


def soon(seconds):
    return str(int(time.time()) + seconds)


def from_now(changes):
    """The changes, with every number of seconds made a moment: a list of parameters is older than the test."""
    return {name: soon(value) if isinstance(value, int) else value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("scheme", "changes", "reason"),
    [
        ("upto", {"spender": EXACT_PROXY}, "invalid_permit2_spender"),
        ("upto", {"spender": "0x"}, "invalid_permit2_spender"),
        ("upto", {"to": STRANGER}, "invalid_permit2_recipient_mismatch"),
        ("upto", {"facilitator": STRANGER}, "upto_facilitator_mismatch"),
        ("upto", {"deadline": 4}, "permit2_deadline_expired"),
        ("upto", {"deadline": "0"}, "permit2_deadline_expired"),
        ("upto", {"validAfter": 60}, "permit2_not_yet_valid"),
        ("upto", {"amount": str(AMOUNT - 1)}, "permit2_amount_mismatch"),
        ("upto", {"amount": str(AMOUNT + 1)}, "permit2_amount_mismatch"),
        ("upto", {"token": STRANGER}, "permit2_token_mismatch"),
        ("exact", {"spender": UPTO_PROXY}, "invalid_permit2_spender"),
        ("exact", {"to": STRANGER}, "invalid_permit2_recipient_mismatch"),
        ("exact", {"deadline": 4}, "permit2_deadline_expired"),
        ("exact", {"validAfter": 60}, "permit2_not_yet_valid"),
        ("exact", {"amount": str(AMOUNT - 1)}, "permit2_amount_mismatch"),
        ("exact", {"token": STRANGER}, "permit2_token_mismatch"),
        # The order of the checks: of two faults the earlier one is named.
        ("upto", {"spender": EXACT_PROXY, "to": STRANGER}, "invalid_permit2_spender"),
        ("upto", {"to": STRANGER, "facilitator": STRANGER}, "invalid_permit2_recipient_mismatch"),
        ("upto", {"facilitator": STRANGER, "deadline": "0"}, "upto_facilitator_mismatch"),
        ("upto", {"deadline": "0", "validAfter": 60}, "permit2_deadline_expired"),
        ("upto", {"validAfter": 60, "amount": "1"}, "permit2_not_yet_valid"),
        ("upto", {"amount": "1", "token": STRANGER}, "permit2_amount_mismatch"),
    ],
)
def test_permit2_terms_that_differ_are_refused_by_name(chain, facilitator, payer, wanted, scheme, changes, reason):
    terms = wanted(scheme)
    if changes.get("spender") == "0x":
        payment = pay(chain, payer, terms)
        payment["payload"]["permit2Authorization"]["spender"] = "0x"
    else:
        payment = pay(chain, payer, terms, **from_now(changes))
    verdict = facilitator.verify(payment, terms)
    assert (verdict.is_valid, verdict.reason, verdict.payer) == (False, reason, payer.address)
    settled = facilitator.settle(payment, terms)
    if reason != "permit2_amount_mismatch" or scheme == "exact":
        assert (settled.success, settled.reason, settled.transaction) == (False, reason, "")


@pytest.mark.parametrize("number", ["-5", "0x5", "5.0", "1e3", " 5", "٣", "", "1" * 79, str(2**256)])
@pytest.mark.parametrize("name", ["deadline", "nonce", "validAfter", "amount"])
def test_numbers_that_are_no_uint256_in_ascii_decimal_are_refused(chain, facilitator, payer, wanted, name, number):
    terms = wanted()
    payment = pay(chain, payer, terms)
    authorization = payment["payload"]["permit2Authorization"]
    parts = (authorization, authorization["permitted"], authorization["witness"])
    next(part for part in parts if name in part)[name] = number
    for verdict in (facilitator.verify(payment, terms), facilitator.settle(payment, terms)):
        assert verdict.reason == "invalid_permit2_payload_format"


@pytest.mark.parametrize(
    ("accepted", "required", "reason"),
    [
        ({"scheme": "exact"}, {}, "invalid_upto_evm_scheme"),
        ({"network": "eip155:1"}, {}, "invalid_upto_evm_network_mismatch"),
        ({"network": "eip155:1"}, {"network": "eip155:1"}, "invalid_network"),
        ({"scheme": "flat"}, {"scheme": "flat"}, "unsupported_scheme"),
        ({"scheme": "upto"}, {"scheme": "exact"}, "unsupported_scheme"),
    ],
)
def test_terms_of_another_scheme_or_network_are_refused(chain, facilitator, payer, wanted, accepted, required, reason):
    payment = pay(chain, payer, wanted())
    payment["accepted"] = {**payment["accepted"], **accepted}
    assert facilitator.verify(payment, {**wanted(), **required}).reason == reason


def test_a_payload_of_the_wrong_kind_for_its_scheme_is_refused(chain, facilitator, payer, wanted):
    terms = wanted()
    without_facilitator = pay(chain, payer, wanted("exact"))
    for payment in (pay(chain, payer, wanted("exact", "eip3009")), without_facilitator):
        payment["accepted"] = terms
        assert facilitator.verify(payment, terms).reason == "unsupported_payload_type"


@pytest.mark.parametrize("scheme", ["upto", "exact"])
@pytest.mark.parametrize("spoil", [lambda s: "0x", lambda s: s[:-2] + "1d", lambda s: s[:-2], lambda s: None])
def test_a_signature_that_is_not_the_payers_is_refused(chain, facilitator, payer, wanted, scheme, spoil):
    terms = wanted(scheme)
    payment = pay(chain, payer, terms)
    payment["payload"]["signature"] = spoil(payment["payload"]["signature"])
    forged = pay(chain, payer, terms, signer=new_party())
    for bad in (payment, forged):
        assert facilitator.verify(bad, terms).reason == "invalid_permit2_signature"
        assert facilitator.settle(bad, terms).reason == "invalid_permit2_signature"


def test_a_signature_for_another_chain_is_refused(facilitator, payer, wanted):
    terms = wanted()
    elsewhere = permit2_payment(PyEvmChain(chain_id=1), payer, terms)
    assert facilitator.verify(elsewhere, terms).reason == "invalid_permit2_signature"


@pytest.mark.parametrize(
    ("scheme", "poor"),
    [("upto", "permit2_insufficient_balance"), ("exact", "invalid_exact_evm_insufficient_balance")],
)
def test_a_payer_without_allowance_or_money_is_told_which(chain, facilitator, wanted, scheme, poor):
    terms = wanted(scheme)
    unapproved, broke = funded_party(chain), funded_party(chain, opg_atomic=AMOUNT - 1, approved=True)
    assert facilitator.verify(pay(chain, unapproved, terms), terms).reason == "permit2_allowance_required"
    assert facilitator.verify(pay(chain, broke, terms), terms).reason == poor


def test_an_asset_that_is_no_contract_is_refused(chain, facilitator, payer, wanted):
    for scheme, method in (("upto", "permit2"), ("exact", "permit2"), ("exact", "eip3009")):
        terms = {**wanted(scheme, method), "asset": STRANGER}
        payment = pay(chain, payer, terms)
        verdict = facilitator.verify(payment, terms)
        if method == "eip3009":  # the signature is over the asset's own domain, so it fails first
            assert verdict.reason == "invalid_exact_evm_payload_signature"
        else:
            assert verdict.reason == "asset_not_deployed_contract"


def test_a_used_nonce_is_found_by_simulation(chain, facilitator, payer, wanted):
    terms = wanted()
    payment = pay(chain, payer, terms)
    assert facilitator.settle(payment, terms, 1).success
    verdict = facilitator.verify(payment, terms)
    assert verdict.reason == "invalid_upto_evm_transaction_failed"
    assert "InvalidNonce()" in (verdict.message or "")


def test_a_contract_wallet_pays_with_its_owners_signature_only(chain, facilitator, payer, wanted):
    wallet = deploy_wallet(chain, payer)
    owner = replace(payer, address=wallet)
    refusals = {
        ("upto", "permit2"): "invalid_upto_evm_transaction_failed",
        ("exact", "permit2"): "invalid_permit2_signature",
        ("exact", "eip3009"): "invalid_exact_evm_payload_signature",
    }
    for (scheme, method), reason in refusals.items():
        terms = wanted(scheme, method)
        forged = pay(chain, owner, terms, signer=new_party())
        assert facilitator.verify(forged, terms).reason == reason
        assert not facilitator.settle(forged, terms).success
        assert facilitator.settle(pay(chain, owner, terms), terms).success


# The EIP-2612 extension


def with_permit(chain, payer, payment, **changes):
    deadline = int(changes.get("deadline", soon(120)))
    value = int(payment["accepted"]["amount"])
    signature = sign_permit(chain, payer, spender=PERMIT2, value=value, deadline=deadline)
    info = {
        "from": payer.address,
        "asset": OPG,
        "spender": PERMIT2,
        "amount": str(value),
        "nonce": "0",
        "deadline": str(deadline),
        "signature": "0x" + signature.hex(),
        "version": "1",
    }
    return {**payment, "extensions": {"eip2612GasSponsoring": {"info": info | changes}}}


@pytest.mark.parametrize("scheme", ["upto", "exact"])
def test_a_permit_that_comes_along_replaces_the_approval(chain, facilitator, wanted, scheme):
    newcomer, terms = funded_party(chain), wanted(scheme)
    payment = with_permit(chain, newcomer, pay(chain, newcomer, terms))
    assert facilitator.verify(payment, terms).is_valid
    settled = facilitator.settle(payment, terms)
    assert settled.success
    receipt = chain.rpc("eth_getTransactionReceipt", [settled.transaction])
    assert receipt["logs"][-1]["topics"] == [contract("UptoProxy").topic("SettledWithPermit")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"from": STRANGER}, "eip2612_from_mismatch"),
        ({"asset": STRANGER}, "eip2612_asset_mismatch"),
        ({"spender": STRANGER}, "eip2612_spender_not_permit2"),
        ({"deadline": "5"}, "eip2612_deadline_expired"),
        ({"signature": "0x12"}, "invalid_eip2612_extension_format"),
        ({"amount": "-1"}, "invalid_eip2612_extension_format"),
        ({"signature": None}, "permit2_allowance_required"),
    ],
)
def test_a_permit_that_does_not_fit_is_refused_by_name(chain, facilitator, wanted, changes, reason):
    newcomer, terms = funded_party(chain), wanted()
    payment = with_permit(chain, newcomer, pay(chain, newcomer, terms), **changes)
    assert facilitator.verify(payment, terms).reason == reason


def test_an_approved_payer_may_send_a_permit_that_is_unusable(chain, facilitator, payer, wanted):
    terms = wanted()
    payment = with_permit(chain, payer, pay(chain, payer, terms), amount="-1", signature="0x12")
    assert facilitator.verify(payment, terms).is_valid
    assert facilitator.settle(payment, terms, 1).success


# The extension for approvals that the facilitator sends


def with_approval(chain, payer, payment, *, signer=None, to=OPG, data=None, nonce=0, gas=70_000, fee=10**10, **changes):
    amount = int(payment["accepted"]["amount"])
    raw = sign_transaction(
        (signer or payer).private_key,
        chain_id=changes.pop("chain_id", chain.chain_id),
        nonce=nonce,
        to=to,
        data=contract("OPG").encode("approve", PERMIT2, amount) if data is None else data,
        value=0,
        gas=gas,
        max_fee_wei=fee,
        priority_fee_wei=1,
    )
    info = {
        "from": payer.address,
        "asset": OPG,
        "spender": PERMIT2,
        "amount": str(amount),
        "signedTransaction": "0x" + raw.hex(),
        "version": "1",
    }
    return {**payment, "extensions": {"erc20ApprovalGasSponsoring": {"info": info | changes}}}


def without_gas_money(chain):
    party = new_party()
    chain.fund(party.address, token_atomic=10**18)
    return party


@pytest.mark.parametrize("scheme", ["upto", "exact"])
def test_a_signed_approval_is_sent_and_its_gas_paid_before_the_settlement(chain, facilitator, wanted, scheme):
    newcomer, terms = without_gas_money(chain), wanted(scheme)
    payment = with_approval(chain, newcomer, pay(chain, newcomer, terms))
    assert chain.balance(newcomer.address) == 0

    assert facilitator.verify(payment, terms).is_valid
    assert facilitator.settle(payment, terms, AMOUNT if scheme == "exact" else 7).success
    assert chain.token_balance(newcomer.address) == 10**18 - (AMOUNT if scheme == "exact" else 7)
    allowance = chain.call(to=OPG, data=contract("OPG").encode("allowance", newcomer.address, PERMIT2))
    assert int.from_bytes(allowance, "big") == AMOUNT - (AMOUNT if scheme == "exact" else 7)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"from": STRANGER}, "erc20_approval_from_mismatch"),
        ({"asset": STRANGER}, "erc20_approval_asset_mismatch"),
        ({"spender": STRANGER}, "erc20_approval_spender_not_permit2"),
        ({"amount": "-1"}, "invalid_erc20_approval_extension_format"),
        ({"signedTransaction": None}, "permit2_allowance_required"),
        ({"signedTransaction": "0x"}, "erc20_approval_tx_parse_failed"),
        ({"signedTransaction": "0x02c0"}, "erc20_approval_tx_parse_failed"),
        ({"signedTransaction": "0x02cc" + "c0" * 12}, "erc20_approval_tx_parse_failed"),
        ({"signedTransaction": "0x02cc" + "01" * 12}, "erc20_approval_tx_signer_mismatch"),
        ({"signedTransaction": "0x02cc" + "01" * 9 + "80" * 3}, "erc20_approval_tx_invalid_signature"),
        ({"signedTransaction": "approve me"}, "erc20_approval_tx_parse_failed"),
        ({"to": STRANGER}, "erc20_approval_tx_wrong_target"),
        ({"data": b"\x01\x02\x03\x04"}, "erc20_approval_tx_wrong_selector"),
        ({"data": contract("OPG").selector("approve")}, "erc20_approval_tx_invalid_calldata"),
        ({"data": contract("OPG").encode("approve", STRANGER, 2**255)}, "erc20_approval_tx_wrong_spender"),
        ({"data": contract("OPG").encode("approve", PERMIT2, 1)}, "permit2_allowance_required"),
        ({"nonce": 5}, "erc20_approval_broadcast_failed"),
        ({"chain_id": 1}, "erc20_approval_broadcast_failed"),
        ({"fee": 10**15}, "erc20_approval_broadcast_failed"),
    ],
)
def test_an_approval_that_does_not_fit_is_refused_by_name(chain, facilitator, wanted, changes, reason):
    newcomer, terms = without_gas_money(chain), wanted()
    payment = with_approval(chain, newcomer, pay(chain, newcomer, terms), **changes)
    assert facilitator.verify(payment, terms).reason == reason
    assert facilitator.settle(payment, terms).success is False
    assert chain.balance(newcomer.address) == 0


def test_an_approval_that_somebody_else_signed_is_refused(chain, facilitator, wanted):
    newcomer, terms = without_gas_money(chain), wanted()
    payment = with_approval(chain, newcomer, pay(chain, newcomer, terms), signer=new_party())
    assert facilitator.verify(payment, terms).reason == "erc20_approval_tx_signer_mismatch"


def test_an_approval_that_fails_on_chain_takes_nothing(chain, facilitator, wanted):
    newcomer, terms = without_gas_money(chain), wanted()
    payment = with_approval(chain, newcomer, pay(chain, newcomer, terms), gas=22_500)
    assert facilitator.settle(payment, terms).reason == "erc20_approval_tx_failed"
    assert chain.token_balance(newcomer.address) == 10**18


def test_an_approval_that_is_not_needed_is_not_sent(chain, facilitator, payer, wanted):
    terms, nonce = wanted(), chain.rpc("eth_getTransactionCount", [payer.address, "latest"])
    payment = with_approval(chain, payer, pay(chain, payer, terms), nonce=int(nonce, 16))
    assert facilitator.settle(payment, terms, 1).success
    assert chain.rpc("eth_getTransactionCount", [payer.address, "latest"]) == nonce


# EIP-3009


@pytest.mark.parametrize(
    ("changes", "extra", "reason"),
    [
        ({"to": STRANGER}, {}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"value": "1"}, {}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"validBefore": 4}, {}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"validAfter": 60}, {}, "invalid_exact_evm_payload_authorization_valid_after"),
        ({}, {"name": None}, "missing_eip712_domain"),
        ({}, {"version": "7"}, "invalid_exact_evm_payload_signature"),
        ({"to": STRANGER, "value": "1"}, {}, "invalid_exact_evm_payload_recipient_mismatch"),
    ],
)
def test_eip3009_terms_that_differ_are_refused_by_name(chain, facilitator, payer, wanted, changes, extra, reason):
    terms = wanted("exact", "eip3009")
    payment = pay(chain, payer, terms, **from_now(changes))
    required = {**terms, "extra": terms["extra"] | extra}
    assert facilitator.verify(payment, required).reason == reason
    assert facilitator.settle(payment, required).reason == reason


def test_eip3009_signatures_of_others_and_of_wallets_that_do_not_exist_are_refused(chain, facilitator, payer, wanted):
    terms = wanted("exact", "eip3009")
    forged = pay(chain, payer, terms, signer=new_party())
    assert facilitator.verify(forged, terms).reason == "invalid_exact_evm_payload_signature"
    odd = pay(chain, payer, terms)
    odd["payload"]["signature"] += "00"
    assert facilitator.verify(odd, terms).reason == "invalid_exact_evm_payload_undeployed_smart_wallet"
    odd["payload"]["signature"] = "0x" + "00" * 96 + "6492" * 16
    assert facilitator.verify(odd, terms).reason == "eip6492_factory_not_allowed"


def test_an_eip3009_payer_without_money_is_told(chain, facilitator, wanted):
    terms = wanted("exact", "eip3009")
    poor = funded_party(chain, opg_atomic=1)
    assert facilitator.verify(pay(chain, poor, terms), terms).reason == "invalid_exact_evm_insufficient_balance"


# Many at once


def test_parallel_settlements_all_arrive_and_parallel_doubles_settle_once(chain, facilitator, payer, payee, wanted):
    terms = wanted()
    payments = [pay(chain, payer, terms) for _ in range(12)]
    before = chain.token_balance(payee)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda payment: facilitator.settle(payment, terms, 3), payments * 2))
    assert sum(result.success for result in results) == 12
    reasons = {result.reason for result in results if not result.success}
    assert reasons <= {"permit2_invalid_nonce", "duplicate_settlement"}
    assert chain.token_balance(payee) - before == 12 * 3
    assert len({result.transaction for result in results if result.success}) == 12


def test_a_settlement_takes_tens_of_milliseconds_of_work(chain, facilitator, payer, wanted):
    terms = wanted()
    times_s = []
    for payment in [pay(chain, payer, terms) for _ in range(9)]:
        started = time.process_time()
        assert facilitator.settle(payment, terms, 1).success
        times_s.append(time.process_time() - started)
    assert sorted(times_s)[4] < 0.1


# Shapes and vectors


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("x402Version",), 1, "invalid_x402_version"),
        (("x402Version",), None, "invalid_x402_version"),
        (("accepted",), None, "invalid_payload"),
        (("accepted", "scheme"), 5, "invalid_payload"),
        (("payload",), [], "invalid_payload"),
        (("payload", "permit2Authorization"), "x", "invalid_payload"),
        (("payload", "permit2Authorization", "witness"), None, "invalid_payload"),
        (("payload", "permit2Authorization", "from"), "0x12", "invalid_payload"),
        (("payload", "permit2Authorization", "nonce"), 5, "invalid_payload"),
        (("payload", "signature"), "0xzz", "invalid_payload"),
        (("payload", "signature"), {"a": 1}, "invalid_payload"),
    ],
)
def test_a_payload_without_the_shape_of_the_protocol_is_malformed(
    chain, payer, wanted, facilitator, path, value, reason
):
    terms = wanted()
    payment = pay(chain, payer, terms)
    place = payment
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PaymentMalformed) as refused:
        facilitator.verify(payment, terms)
    assert refused.value.reason == reason


@pytest.mark.parametrize("spoil", [{"amount": 5}, {"asset": "OPG"}, {"payTo": None}, {"scheme": None}, {"amount": "x"}])
def test_requirements_without_the_shape_of_the_protocol_are_malformed(chain, payer, wanted, facilitator, spoil):
    payment = pay(chain, payer, wanted())
    with pytest.raises(PaymentMalformed) as refused:
        facilitator.settle(payment, {**wanted(), **spoil})
    assert refused.value.reason == "invalid_payment_requirements"


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text())["cases"], ids=lambda case: case["scheme"])
def test_the_payer_of_every_official_signature_is_recovered(case):
    terms = case["requirements"]
    chain_id = int(terms["network"].removeprefix("eip155:"))
    payment = parse_payment({"x402Version": 2, "accepted": terms, "payload": case["payload"]})
    signed = payment.authorization
    if "authorization" in case["payload"]:
        digest = eip3009_digest(
            chain_id=chain_id,
            token=terms["asset"],
            name=terms["extra"]["name"],
            version=terms["extra"]["version"],
            payer=signed.payer,
            to=signed.to,
            value=signed.value,
            valid_after=signed.valid_after,
            valid_before=signed.valid_before,
            nonce=signed.nonce,
        )
    else:
        digest = permit2_digest(
            chain_id=chain_id,
            token=signed.token,
            amount=int(signed.amount),
            spender=signed.spender,
            nonce=int(signed.nonce),
            deadline=int(signed.deadline),
            to=signed.to,
            facilitator=signed.facilitator,
            valid_after=int(signed.valid_after),
        )
    assert recover(digest, signed.signature) == case["address"]
