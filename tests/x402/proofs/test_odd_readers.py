"""Odd questions of readers, and what a gateway can do to an honest payer's file."""

from __future__ import annotations

import pytest

from opengradient_devnet.contracts import MULTICALL3, OPG, contract
from opengradient_devnet.faults import ForgeProof
from opengradient_x402.errors import ConfigurationError, ProofRejected
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Read, Refuted, Statement, Undecided
from opengradient_x402.proofs.verification import Verification, verify_bundle
from support.payers import PROMPT, client_for, settled_receipts
from support.settling import mined, new_payer, settle_call


def exported(payments) -> bytes:
    return export_bundle(payments.ledger, network=payments.network, signer=payments.signer).to_bytes()


def completeness(verification: Verification):
    (finding,) = [item for item in verification.findings if item.statement is Statement.COMPLETE]
    return finding


def test_a_period_without_blocks_is_no_question(paid):
    with pytest.raises(ConfigurationError, match="has no blocks"):
        verify_bundle(exported(paid), network=paid.network, from_block=7, to_block=6)


def test_a_period_that_is_not_over_is_not_complete_yet(net, paid):
    content = exported(paid)
    head = int(net.chain.rpc("eth_blockNumber", []), 16)
    whole = completeness(verify_bundle(content, network=paid.network, from_block=0, to_block=head))
    later = completeness(verify_bundle(content, network=paid.network, from_block=0, to_block=head + 1_000))
    assert (type(whole), type(later)) == (Read, Undecided)
    assert "no later block yet" in later.why


def test_a_strangers_settlement_refutes_no_file_by_a_transfer_of_nothing_in_the_payers_name(net, paid):
    stranger, facilitator = new_payer(net), net.account(opg="0")
    signed = stranger.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=5)
    nothing = contract("OPG").encode("transferFrom", paid.payer, OPG, 0)
    data = contract("Multicall3").encode("tryAggregate", True, [(OPG, nothing), settle_call(signed)])
    mined(net.chain.send(facilitator, to=MULTICALL3, data=data))
    found = completeness(verify_bundle(exported(paid), network=paid.network))
    assert isinstance(found, Read)
    assert "all 1 settlements" in found.why


def test_a_replayed_proof_does_not_refute_the_honest_payers_file(net, payments):
    with client_for(payments, verify_tee="require") as client:
        client.chat(PROMPT)
        net.faults.inject(ForgeProof(part="replayed"))
        with pytest.raises(ProofRejected):
            client.chat(PROMPT)
    settled_receipts(net, payments)
    verification = verify_bundle(exported(payments), network=payments.network)
    assert verification.of(Refuted) == []
    disowned = [item for item in verification.findings if "had come with another call before" in item.why]
    assert [(item.statement, type(item)) for item in disowned] == [(Statement.ENCLAVE, Undecided)]
