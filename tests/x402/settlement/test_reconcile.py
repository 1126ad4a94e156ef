from __future__ import annotations

import secrets
import time
from dataclasses import replace

import pytest

from opengradient_devnet import Account, Devnet
from opengradient_devnet.contracts import PERMIT2, contract
from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.payment.wallet import Wallet
from opengradient_x402.settlement.search import (
    Cancelled,
    NotSettled,
    SettledElsewhere,
    SettlementFound,
    find_settlements,
    settled_nothing_of,
)
from support.node import asked, serving
from support.settling import Payer, deploy_wallet, new_payer, settle, settle_call, settle_together

OPG = 10**18


@pytest.fixture
def payer(net: Devnet) -> Payer:
    return new_payer(net)


@pytest.fixture
def facilitator(net: Devnet) -> Account:
    return net.account(opg="0")


def outcome(payer: Payer, authorization, *, rpc_url: str | None = None):
    terms = getattr(authorization, "authorization", authorization)
    with ChainReader(rpc_url or payer.network.rpc_url, payer.network.chain_id) as chain:
        return chain.ask(find_settlements([terms], network=payer.network))[terms]


def test_a_settlement_is_found_with_amount_block_and_transaction_as_the_chain_has_them(net, payer, facilitator):
    before = net.chain.token_balance(payer.account.address)
    authorization = payer.sign(facilitator=facilitator.address)
    tx_hash = settle(net, facilitator, authorization, 3 * 10**16)
    found = outcome(payer, authorization)
    on_chain = net.chain.rpc("eth_getTransactionReceipt", [tx_hash])
    assert isinstance(found, SettlementFound)
    assert found.tx_hash == tx_hash
    assert found.block_number == int(on_chain["blockNumber"], 16)
    assert found.block_hash == on_chain["blockHash"].lower()
    assert found.amount_atomic == 3 * 10**16 == before - net.chain.token_balance(payer.account.address)
    assert (found.payer, found.payee) == (payer.account.address, authorization.authorization.terms.payee)
    assert found.confirmations == 1


def test_confirmations_grow_with_the_chain(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    settle(net, facilitator, authorization, 1)
    settle(net, facilitator, payer.sign(facilitator=facilitator.address), 1)
    found = outcome(payer, authorization)
    assert isinstance(found, SettlementFound)
    assert found.confirmations >= 2


@pytest.mark.parametrize(("scheme", "method"), [("exact", "permit2"), ("exact", "eip3009")])
def test_exact_payments_are_found_too(net, payer, facilitator, scheme, method):
    authorization = payer.sign(facilitator=facilitator.address, scheme=scheme, method=method, amount_atomic=77)
    assert outcome(payer, authorization) == NotSettled(is_expired=False)
    tx_hash = settle(net, facilitator, authorization)
    found = outcome(payer, authorization)
    assert isinstance(found, SettlementFound)
    assert (found.tx_hash, found.amount_atomic) == (tx_hash, 77)


def test_a_facilitator_that_is_a_contract_is_seen_through(net, payer, facilitator):
    wallet = deploy_wallet(net, facilitator)
    authorization = payer.sign(facilitator=wallet)
    tx_hash = settle(net, facilitator, authorization, 12345, wallet=wallet)
    found = outcome(payer, authorization)
    assert isinstance(found, SettlementFound)
    assert (found.tx_hash, found.amount_atomic) == (tx_hash, 12345)


def test_appended_calldata_does_not_hide_a_settlement(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    tx_hash = settle(net, facilitator, authorization, 5, appended=secrets.token_bytes(77))
    found = outcome(payer, authorization)
    assert isinstance(found, SettlementFound)
    assert (found.tx_hash, found.amount_atomic) == (tx_hash, 5)


def test_several_settlements_in_one_transaction_are_told_apart(net, payer, facilitator):
    other = new_payer(net)
    mine = [payer.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=n) for n in (5, 9, 5, 2)]
    theirs = other.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=7)
    tx_hash = settle_together(net, facilitator, [mine[0], theirs, *mine[1:]])
    with ChainReader(payer.network.rpc_url, payer.network.chain_id) as chain:
        found = chain.ask(find_settlements([item.authorization for item in reversed(mine)], network=payer.network))
    settled = [found[authorization.authorization] for authorization in mine]
    assert all(isinstance(item, SettlementFound) and item.tx_hash == tx_hash for item in settled)
    assert [item.amount_atomic for item in settled] == [5, 9, 5, 2]
    assert len({item.log_index for item in settled}) == 4
    theirs_found = outcome(other, theirs)
    assert isinstance(theirs_found, SettlementFound)
    assert theirs_found.amount_atomic == 7


def test_calldata_that_mentions_another_authorization_settles_nothing_of_it(net, payer, facilitator):
    open_one = payer.sign(facilitator=facilitator.address)
    taken = payer.sign(facilitator=facilitator.address)
    settle(net, facilitator, taken, 5, appended=settle_call(open_one)[1])
    assert outcome(payer, open_one) == NotSettled(is_expired=False)
    found = outcome(payer, taken)
    assert isinstance(found, SettlementFound)
    assert found.amount_atomic == 5


def test_an_unused_authorization_is_open_until_its_deadline_and_expired_after(payer, facilitator):
    fresh = payer.sign(facilitator=facilitator.address)
    just_over = payer.sign(facilitator=facilitator.address, ago_s=70, timeout_s=60)
    long_over = payer.sign(facilitator=facilitator.address, ago_s=1000, timeout_s=60)
    assert outcome(payer, fresh) == NotSettled(is_expired=False)
    assert outcome(payer, just_over) == NotSettled(is_expired=False)  # a reorganisation could still matter
    assert outcome(payer, long_over) == NotSettled(is_expired=True)


def test_a_settlement_is_found_long_after_the_deadline(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    tx_hash = settle(net, facilitator, authorization, 5)
    (terms,) = authorization.authorization.signed
    old = replace(authorization.authorization, signed=(replace(terms, signed_at=int(time.time()) - 10**6),))
    found = outcome(payer, old)
    assert isinstance(found, SettlementFound)
    assert found.tx_hash == tx_hash


@pytest.mark.parametrize("scheme", ["upto", "exact"])
@pytest.mark.parametrize("ahead_s", [3600, 6 * 3600])
def test_a_settlement_is_found_that_was_signed_by_a_clock_far_ahead_as_a_policy_may_allow(
    net, payer, facilitator, scheme, ahead_s
):
    method = "permit2" if scheme == "upto" else "eip3009"
    authorization = payer.sign(facilitator=facilitator.address, scheme=scheme, method=method, ago_s=-ahead_s)
    tx_hash = settle(net, facilitator, authorization, authorization.authorization.amount_atomic)
    other = net.account(opg="0")
    for _ in range(130):  # a search that is off by some blocks would not see it any more
        net.chain.send(other, to=other.address, data=b"")
    found = outcome(payer, authorization)
    assert isinstance(found, SettlementFound)
    assert found.tx_hash == tx_hash


@pytest.mark.parametrize("method", ["permit2", "eip3009"])
def test_a_cancelled_authorization_says_so_with_the_transaction(payer, facilitator, method):
    scheme = "upto" if method == "permit2" else "exact"
    authorization = payer.sign(facilitator=facilitator.address, scheme=scheme, method=method)
    cancellation = Wallet(payer.network, payer.signer).cancel(authorization.authorization)
    assert outcome(payer, authorization) == Cancelled(tx_hash=cancellation.tx_hash)


def test_a_nonce_that_paid_somebody_else_is_not_called_free(net, payer, facilitator):
    # The same nonce, spent by a payment to somebody else: not this authorization's settlement.
    stranger = net.account(opg="0").address
    elsewhere = payer.sign(facilitator=facilitator.address, payee=stranger)
    settle(net, facilitator, elsewhere, 5)
    mine = payer.sign(facilitator=facilitator.address, nonce=elsewhere.authorization.nonce)
    found = outcome(payer, mine)
    assert isinstance(found, SettledElsewhere)
    assert (found.settlement.payee, found.settlement.amount_atomic) == (stranger, 5)


def test_terms_that_were_signed_again_are_found_by_their_nonce(net, payer, facilitator):
    earlier = payer.sign(facilitator=facilitator.address, amount_atomic=500, ago_s=5)
    later = payer.sign(facilitator=facilitator.address, amount_atomic=100, nonce=earlier.authorization.nonce)
    settle(net, facilitator, earlier, 400)
    found = outcome(payer, later)
    assert isinstance(found, SettlementFound)
    assert found.amount_atomic == 400  # what the chain took, also where it is more than was signed last


def test_small_nonces_match_only_with_their_whole_permit(net, payer, facilitator):
    # 0x20 is in the calldata of every settlement, as an offset.
    small = payer.sign(facilitator=facilitator.address, nonce=32)
    settle(net, facilitator, payer.sign(facilitator=facilitator.address), 5)
    Wallet(payer.network, payer.signer).cancel(small.authorization)
    assert isinstance(outcome(payer, small), Cancelled)
    counted = payer.sign(facilitator=facilitator.address, nonce=33)
    settle(net, facilitator, counted, 6)
    found = outcome(payer, counted)
    assert isinstance(found, SettlementFound)
    assert found.amount_atomic == 6


def test_a_plain_transfer_to_the_payee_is_no_settlement(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    payee = authorization.authorization.terms.payee
    net.chain.send(payer.account, to=payer.network.asset.address, data=contract("OPG").encode("transfer", payee, 5))
    invalidate = contract("Permit2").encode(
        "invalidateUnorderedNonces",
        authorization.authorization.nonce >> 8,
        1 << (authorization.authorization.nonce & 255),
    )
    net.chain.send(payer.account, to=PERMIT2, data=invalidate + settle_call(authorization)[1])
    assert isinstance(outcome(payer, authorization), Cancelled)


def test_many_authorizations_take_one_log_scan_and_add_up_to_the_balance(net, facilitator):
    payer = new_payer(net)
    before = net.chain.token_balance(payer.account.address)
    authorizations = [payer.sign(facilitator=facilitator.address) for _ in range(60)]
    for number, authorization in enumerate(authorizations):
        if number % 3 != 2:
            settle(net, facilitator, authorization, 10**15 + number)
    with serving(net.chain) as node, ChainReader(node.url, payer.network.chain_id) as chain:
        terms = [authorization.authorization for authorization in authorizations]
        outcomes = chain.ask(find_settlements(terms, network=payer.network))
        assert node.count("eth_getLogs") == 1
    settled = [item for item in outcomes.values() if isinstance(item, SettlementFound)]
    assert len(settled) == 40
    assert sum(item.amount_atomic for item in settled) == before - net.chain.token_balance(payer.account.address)
    assert list(outcomes.values()).count(NotSettled(is_expired=False)) == 20


def test_no_log_is_read_while_nothing_was_used(net, payer, facilitator):
    with serving(net.chain) as node:
        outcome(payer, payer.sign(facilitator=facilitator.address), rpc_url=node.url)
        assert node.count("eth_getLogs") == 0


def test_a_node_that_limits_ranges_and_rates_slows_the_search_and_does_not_stop_it(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    tx_hash = settle(net, facilitator, authorization, 5)
    for _ in range(12):
        settle(net, facilitator, payer.sign(facilitator=facilitator.address), 1)

    def strict(method, params, number):
        if number % 5 == 0:
            return 429, {}
        if method == "eth_getLogs" and int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) >= 10:
            return 200, {"error": {"code": -32602, "message": "query exceeds max block range 10"}}
        return None

    with serving(net.chain) as node:
        node.misbehave = strict
        found = outcome(payer, authorization, rpc_url=node.url)
        assert node.count("eth_getLogs") > 2
    assert isinstance(found, SettlementFound)
    assert found.tx_hash == tx_hash


def test_a_named_transaction_is_checked_and_not_believed(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    terms = authorization.authorization
    other = new_payer(net)
    others_tx = settle(net, facilitator, other.sign(facilitator=facilitator.address), 5)
    with ChainReader(payer.network.rpc_url, payer.network.chain_id) as chain:

        def is_untrue(tx_hash: str):
            return chain.ask(settled_nothing_of(tx_hash, terms))

        assert is_untrue(others_tx)
        tx_hash = settle(net, facilitator, authorization, 5)
        assert is_untrue(others_tx)
        assert not is_untrue("0x" + "12" * 32)  # nothing is known of it
        assert not is_untrue(tx_hash)


async def test_coroutines_ask_the_same_questions(net, payer, facilitator):
    authorization = payer.sign(facilitator=facilitator.address)
    tx_hash = settle(net, facilitator, authorization, 5)
    terms, network = authorization.authorization, payer.network
    outcomes = await asked(network.rpc_url, network.chain_id, find_settlements([terms], network=network))
    found = outcomes[terms]
    assert isinstance(found, SettlementFound)
    assert found.tx_hash == tx_hash


def test_nothing_to_ask_about_asks_nothing_but_the_time(payer):
    with ChainReader(payer.network.rpc_url, payer.network.chain_id) as chain:
        assert chain.ask(find_settlements([], network=payer.network)) == {}
