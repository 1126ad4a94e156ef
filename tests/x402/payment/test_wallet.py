from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

import pytest

from opengradient_devnet import Account, Devnet
from opengradient_devnet.chain.accounts import new_account
from opengradient_devnet.chain.chain import RpcError as ChainRefused
from opengradient_devnet.contracts import OPG, PERMIT2, contract
from opengradient_x402.chain import transactions
from opengradient_x402.chain.questions import ChainReader, RpcRequest
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.errors import (
    AllowanceMissing,
    ChainUnavailable,
    ConfigurationError,
    InsufficientFunds,
    NotPaid,
    RpcError,
)
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.money import MAX_UINT256, format_amount
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.wallet import Funds, Wallet, require_funds
from support.node import serving
from support.settling import Payer, new_payer, settle
from support.settling import settle_call as settlement

ATOMIC = 10**18


@pytest.fixture
def unapproved(net: Devnet) -> Payer:
    return new_payer(net, opg="7", approved=False)


@pytest.fixture
def facilitator(net: Devnet) -> Account:
    return net.account(opg="0")


def wallet_of(payer: Payer) -> Wallet:
    return Wallet(payer.network, payer.signer)


def transactions_of(net: Devnet, payer: Payer) -> int:
    return int(net.chain.rpc("eth_getTransactionCount", [payer.account.address, "latest"]), 16)


def test_balances_and_allowance_are_read_from_the_chain(net, unapproved):
    wallet = wallet_of(unapproved)
    assert wallet.address == unapproved.account.address
    assert wallet.balance() == 7 * ATOMIC
    assert wallet.allowance() == 0
    assert wallet.native_balance() == net.chain.balance(wallet.address) > 0


def test_an_approval_is_sent_once_and_bounded(net, unapproved):
    wallet = wallet_of(unapproved)
    first = wallet.ensure_opg_approval(min_allowance="0.5", approve_amount="1.5")
    assert first.tx_hash is not None
    assert (first.allowance_before_atomic, first.allowance_after_atomic) == (0, 15 * 10**17)
    assert net.chain.rpc("eth_getTransactionReceipt", [first.tx_hash])["status"] == "0x1"
    again = wallet.ensure_opg_approval(min_allowance="0.5", approve_amount="1.5")
    assert again.tx_hash is None
    assert again.allowance_after_atomic == wallet.allowance() == 15 * 10**17
    assert transactions_of(net, unapproved) == 1


def test_the_default_approval_is_twice_the_minimum_and_never_unlimited(unapproved):
    approval = wallet_of(unapproved).ensure_opg_approval(min_allowance=5)
    assert approval.allowance_after_atomic == 10 * ATOMIC


def test_an_approval_that_was_partly_spent_is_renewed_only_below_the_minimum(net, unapproved, facilitator):
    wallet = wallet_of(unapproved)
    wallet.ensure_opg_approval(min_allowance=1, approve_amount=2)
    settle(net, facilitator, unapproved.sign(facilitator=facilitator.address, amount_atomic=ATOMIC))
    assert wallet.ensure_opg_approval(min_allowance=1, approve_amount=2).tx_hash is None
    settle(net, facilitator, unapproved.sign(facilitator=facilitator.address, amount_atomic=1))
    assert wallet.ensure_opg_approval(min_allowance=1, approve_amount=2).allowance_after_atomic == 2 * ATOMIC


def test_the_older_form_approves_what_it_names(unapproved):
    wallet = wallet_of(unapproved)
    assert wallet.ensure_opg_approval(opg_amount=5).allowance_after_atomic == 5 * ATOMIC
    assert wallet.ensure_opg_approval(opg_amount=Decimal("4.5")).tx_hash is None


def test_unlimited_has_to_be_said(unapproved):
    approval = wallet_of(unapproved).ensure_opg_approval(min_allowance=1, approve_amount="unlimited")
    assert approval.allowance_after_atomic == 2**256 - 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "how much to allow"),
        ({"approve_amount": 5}, "how much to allow"),
        ({"min_allowance": 0.5}, "float"),
        ({"min_allowance": "unlimited"}, "is not an amount"),
        ({"min_allowance": 1, "approve_amount": format_amount(MAX_UINT256, decimals=18)}, "without a limit"),
        ({"min_allowance": format_amount(2**255, decimals=18)}, "without a limit"),
        ({"opg_amount": format_amount(MAX_UINT256, decimals=18)}, "without a limit"),
        ({"min_allowance": -1}, "is not an amount"),
        ({"min_allowance": 5, "approve_amount": 4}, "is less than `min_allowance`"),
        ({"min_allowance": 5, "opg_amount": 5}, "give one form"),
        ({"opg_amount": "lots"}, "is not an amount"),
    ],
)
def test_amounts_that_cannot_be_meant_send_nothing(net, unapproved, arguments, reason):
    with pytest.raises(ConfigurationError, match=reason):
        wallet_of(unapproved).ensure_opg_approval(**arguments)
    assert transactions_of(net, unapproved) == 0


def test_an_approval_without_gas_is_refused_before_it_is_sent(net):
    poor = Wallet(new_payer(net).network, LocalSigner(new_account().private_key))
    with pytest.raises(InsufficientFunds, match=f"it holds none.*Send a little ETH to {poor.address}"):
        poor.ensure_opg_approval(min_allowance=1)
    net.chain.fund(poor.address, native_wei=1000)
    with pytest.raises(InsufficientFunds, match=r"it holds 0\.000000000000001 and up to 0\.\d+ may be needed"):
        poor.ensure_opg_approval(min_allowance=1)
    assert poor.allowance() == 0


@pytest.mark.parametrize(("scheme", "method"), [("upto", "permit2"), ("exact", "permit2"), ("exact", "eip3009")])
def test_a_cancelled_authorization_cannot_be_settled(net, facilitator, scheme, method):
    payer = new_payer(net)
    before = net.chain.token_balance(payer.account.address)
    authorization = payer.sign(facilitator=facilitator.address, scheme=scheme, method=method)
    cancellation = wallet_of(payer).cancel(authorization.authorization)
    assert cancellation.tx_hash is not None
    to, data = settlement(authorization)
    with pytest.raises(ChainRefused):
        net.chain.call(to=to, data=data, sender=facilitator.address)
    assert net.chain.token_balance(payer.account.address) == before


def test_cancelling_leaves_the_neighbouring_nonces_alone(net, facilitator):
    payer = new_payer(net)
    base = payer.signer.nonce_for("neighbours") & ~255
    gone, kept = (payer.sign(facilitator=facilitator.address, nonce=base + n) for n in (3, 4))
    wallet_of(payer).cancel(gone.authorization)
    settle(net, facilitator, kept, 1)


def test_what_was_settled_first_is_not_cancelled_again(net, facilitator):
    payer = new_payer(net)
    authorization = payer.sign(facilitator=facilitator.address)
    settle(net, facilitator, authorization, 1)
    sent_before = transactions_of(net, payer)
    assert wallet_of(payer).cancel(authorization.authorization).tx_hash is None
    assert transactions_of(net, payer) == sent_before


def test_only_the_payer_can_cancel(net, facilitator):
    authorization_owner = new_payer(net)
    authorization = authorization_owner.sign(facilitator=facilitator.address)
    with pytest.raises(ConfigurationError, match="only the payer can cancel"):
        wallet_of(new_payer(net)).cancel(authorization.authorization)


def test_funds_are_looked_at_before_signing(net, unapproved, facilitator):
    def check(payer: Payer, **changes) -> None:
        terms = payer.sign(facilitator=facilitator.address, **changes).accepted
        require_funds(payer.network, payer.account.address, terms)

    with pytest.raises(InsufficientFunds, match="holds 7 OPG on devnet; the payment authorizes 8 OPG"):
        check(unapproved, amount_atomic=8 * ATOMIC)
    with pytest.raises(AllowanceMissing, match="opengradient-x402 approve"):
        check(unapproved)
    check(unapproved, scheme="exact", method="eip3009")  # needs no allowance
    check(new_payer(net))


def test_a_transaction_that_reverts_is_an_error_with_its_hash(net, unapproved):
    # An estimate that is too low: the transaction runs out of gas.
    def misbehave(method, params, number):
        if method == "eth_estimateGas":
            return 200, {"result": hex(21_500)}
        return None

    with serving(net.chain) as node:
        node.misbehave = misbehave
        wallet = Wallet(unapproved.network, unapproved.signer, chain=ChainReader(node.url, unapproved.network.chain_id))
        with pytest.raises(NotPaid, match=r"mined and reverted \(transaction 0x[0-9a-f]{64}\)"):
            wallet.ensure_opg_approval(min_allowance=1)
    assert wallet_of(unapproved).allowance() == 0


def test_a_connection_that_breaks_while_sending_sends_one_transaction(net, unapproved):
    sent: list[str] = []

    def misbehave(method, params, number):
        if method != "eth_sendRawTransaction":
            return None
        sent.append(params[0])
        if len(sent) == 1:
            net.chain.rpc(method, params)
            return 503, b""  # the node took it, and its answer was lost
        return 200, {"error": {"code": -32000, "message": "already known"}}

    with serving(net.chain) as node:
        node.misbehave = misbehave
        chain = ChainReader(node.url, unapproved.network.chain_id)
        approval = Wallet(unapproved.network, unapproved.signer, chain=chain).ensure_opg_approval(min_allowance=1)
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert approval.allowance_after_atomic == 2 * ATOMIC
    assert transactions_of(net, unapproved) == 1


def test_a_node_without_the_tip_method_is_good_enough(net, unapproved):
    def misbehave(method, params, number):
        if method == "eth_maxPriorityFeePerGas":
            return 200, {"error": {"code": -32601, "message": "method not found"}}
        return None

    with serving(net.chain) as node:
        node.misbehave = misbehave
        reader = ChainReader(node.url, unapproved.network.chain_id)
        approval = Wallet(unapproved.network, unapproved.signer, chain=reader).ensure_opg_approval(min_allowance=1)
    assert approval.tx_hash is not None


def test_a_dead_node_is_an_error_that_says_nothing_was_changed(unapproved):
    chain = ChainReader("http://127.0.0.1:1", unapproved.network.chain_id)
    with pytest.raises(ChainUnavailable, match="did not answer eth_chainId"):
        Wallet(unapproved.network, unapproved.signer, chain=chain).balance()


def test_the_approval_is_an_ordinary_one_of_permit2(net, unapproved):
    approval = wallet_of(unapproved).ensure_opg_approval(min_allowance=1, approve_amount=1)
    transaction = net.chain.rpc("eth_getTransactionByHash", [approval.tx_hash])
    assert transaction["to"].lower() == OPG.lower()
    assert bytes.fromhex(transaction["input"][2:]) == contract("OPG").encode("approve", PERMIT2, ATOMIC)


def refusing(method: str, *answers):
    """The node's answers to a method, one after the other; then it is itself again. `None` is an honest answer."""
    left = list(answers)

    def misbehave(asked, params, number):
        return left.pop(0) if asked == method and left else None

    return misbehave


def error(message: str, code: int = -32000):
    return 200, {"error": {"code": code, "message": message}}


def approved_through(net: Devnet, payer: Payer, misbehave):
    with serving(net.chain) as node:
        node.misbehave = misbehave
        chain = ChainReader(node.url, payer.network.chain_id)
        return Wallet(payer.network, payer.signer, chain=chain).ensure_opg_approval(min_allowance=1)


PENDING = {"blockHash": None, "blockNumber": None, "status": None, "logs": [], "transactionHash": "0x" + "00" * 32}


@pytest.mark.parametrize(
    "answer",
    [
        error("transaction indexing is in progress"),
        (200, {"result": PENDING}),
        (200, {"result": None}),
        (500, {"message": "internal"}),
        (200, b'{"jsonrpc":"2.0","id":1,"resul'),
        (404, b"<html>"),
        (200, {"result": "soon"}),
    ],
    ids=["indexing", "pending", "unknown", "internal", "cut", "page", "text"],
)
def test_a_sent_approval_is_awaited_through_bad_answers(net, unapproved, answer):
    approval = approved_through(net, unapproved, refusing("eth_getTransactionReceipt", answer, answer))
    assert approval.allowance_after_atomic == 2 * ATOMIC
    assert transactions_of(net, unapproved) == 1


def test_a_node_that_lags_behind_the_approval_is_asked_until_it_knows(net, unapproved):
    stale = (200, {"result": "0x" + "00" * 32})
    looks = []

    def misbehave(method, params, number):
        if method != "eth_call" or not params[0]["data"].startswith("0xdd62ed3e"):
            return None
        looks.append(number)
        return stale if 2 <= len(looks) <= 4 else error("header not found") if len(looks) == 5 else None

    approval = approved_through(net, unapproved, misbehave)
    assert (approval.allowance_after_atomic, len(looks)) == (2 * ATOMIC, 6)


def test_a_nonce_that_was_used_meanwhile_is_asked_for_again(net, unapproved):
    stale = (200, {"result": "0x0"})
    wallet_of(unapproved).ensure_opg_approval(min_allowance="0.1")
    approval = approved_through(net, unapproved, refusing("eth_getTransactionCount", stale, stale))
    assert approval.allowance_after_atomic == 2 * ATOMIC
    assert transactions_of(net, unapproved) == 2


@pytest.mark.parametrize(
    "words", ["OldNonce, Current nonce: 1, nonce of rejected tx: 0", "could not replace existing tx", "Nonce too low"]
)
def test_a_used_nonce_is_understood_in_the_words_of_every_node(net, unapproved, words):
    refused = []

    def misbehave(method, params, number):
        if method == "eth_sendRawTransaction" and not refused:
            refused.append(params)
            return error(words)
        return None

    assert approved_through(net, unapproved, misbehave).allowance_after_atomic == 2 * ATOMIC
    assert (len(refused), transactions_of(net, unapproved)) == (1, 1)


def test_nonce_too_low_for_what_was_mined_at_the_first_sending_is_success(net, unapproved):
    """The node took it, the answer was lost, and it was mined before it was sent again."""

    def misbehave(method, params, number):
        if method == "eth_sendRawTransaction":
            net.chain.rpc(method, params)
            return error("nonce too low")
        return None

    approval = approved_through(net, unapproved, misbehave)
    assert approval.tx_hash is not None
    assert transactions_of(net, unapproved) == 1


def test_an_answer_to_the_sending_that_was_lost_is_no_failure(net, unapproved):
    def misbehave(method, params, number):
        if method == "eth_sendRawTransaction":
            net.chain.rpc(method, params)
            return 500, {"message": "internal"}
        return None

    assert approved_through(net, unapproved, misbehave).allowance_after_atomic == 2 * ATOMIC


@pytest.mark.parametrize(
    ("method", "message", "missing"),
    [
        ("eth_sendRawTransaction", "insufficient funds: balance 1, tx cost 8, overshot 6000000000000", "0.000006"),
        ("eth_sendRawTransaction", "insufficient funds for gas * price + value: have 1 want 7000000000001", "0.000007"),
        ("eth_sendRawTransaction", "insufficient funds for transfer", "0.000"),
        ("eth_sendRawTransaction", "insufficient funds: address 0xAb0 have 1 want 8000000000001", "0.000008"),
        ("eth_sendRawTransaction", "InsufficientFunds, Account balance: 0, cumulative cost: 9000000000000", "0.000009"),
        ("eth_sendRawTransaction", "Upfront cost exceeds account balance", "0.000"),
        ("eth_sendRawTransaction", "not enough funds: upfront cost is: 5000000000001 and balance is: 1", "0.000005"),
        ("eth_sendRawTransaction", "Insufficient funds. Required 4000000000002 and got: 2.", "0.000004"),
        ("eth_estimateGas", "lack of funds (0) for max fee (3000000000000)", "0.000"),
        ("eth_estimateGas", "gas required exceeds allowance (0)", "0.000"),
    ],
)  # fmt: skip
def test_money_that_is_missing_for_the_fees_is_named_with_its_amount(net, unapproved, method, message, missing):
    with pytest.raises(InsufficientFunds, match=rf"Nothing was sent\. Send a little ETH to 0x\w+: at least {missing}"):
        approved_through(net, unapproved, refusing(method, error(message)))
    assert transactions_of(net, unapproved) == 0


def test_a_refused_transaction_is_named_in_the_error(net, unapproved):
    with pytest.raises(RpcError, match=r"was refused \(transaction 0x[0-9a-f]{64}\).*tx pool is full"):
        approved_through(net, unapproved, refusing("eth_sendRawTransaction", error("tx pool is full")))


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("eth_estimateGas", None),
        ("eth_gasPrice", ""),
        ("eth_maxPriorityFeePerGas", 7),
        ("eth_getTransactionCount", "12x"),
    ],
)
def test_fees_that_are_no_numbers_are_errors_of_the_node(net, unapproved, method, value):
    with suppress(RpcError):
        approved_through(net, unapproved, refusing(method, (200, {"result": value})))
    assert transactions_of(net, unapproved) == (method == "eth_maxPriorityFeePerGas")


@pytest.mark.parametrize(
    ("sending", "receipt", "reason"),
    [
        ("0x", None, "was sent as 0x.* not mined after 90 s"),
        ("0x", RpcError("The node is tired."), "was sent as 0x.* not mined after 90 s.*last answer: The node is tired"),
        (ChainUnavailable("No answer."), None, "may have been sent as 0x.* not mined after 30 s"),
        (RpcError("nonce too low", code=-32000), None, "4 nonces in a row.*0x[0-9a-f]{64}"),
    ],
)
def test_every_error_after_the_sending_holds_the_hash(unapproved, sending, receipt, reason):
    answers = {
        "eth_getBalance": hex(ATOMIC),
        "eth_estimateGas": "0xc350",
        "eth_gasPrice": "0x1",
        "eth_maxPriorityFeePerGas": "0x1",
        "eth_getTransactionCount": "0x0",
        "eth_sendRawTransaction": sending,
        "eth_getTransactionReceipt": receipt,
        "eth_getTransactionByHash": None,
    }
    question = send_transaction(unapproved.network, unapproved.signer, to=OPG, data=b"", what="The approval")

    def answered() -> None:
        wanted = next(question)
        while True:
            answer = answers[wanted.method] if isinstance(wanted, RpcRequest) else None
            wanted = question.throw(answer) if isinstance(answer, Exception) else question.send(answer)

    with pytest.raises(ChainUnavailable, match=reason):
        answered()


def test_a_transaction_that_another_one_replaced_is_said_to_be_replaced(net, unapproved, monkeypatch):
    """A wallet that speeds it up sends the same call again, with the same nonce and a higher fee."""
    monkeypatch.setattr(transactions, "_LONGEST_LOOK_S", 0.2)
    monkeypatch.setattr(transactions, "_LAG_S", 0.5)
    wallet, began = wallet_of(unapproved), time.monotonic()

    def replace_it(method, params, number):
        if method != "eth_sendRawTransaction" or transactions_of(net, unapproved):
            return None
        wallet.ensure_opg_approval("1", "3")
        return 200, {"result": "0x" + "22" * 32}

    with pytest.raises(
        NotPaid, match=r"0x[0-9a-f]{64}\) was replaced: .* nonce 0 was mined.*moved no tokens"
    ) as caught:
        approved_through(net, unapproved, replace_it)
    assert time.monotonic() - began < 10
    assert not isinstance(caught.value, ChainUnavailable)
    again = wallet.ensure_opg_approval("1")
    assert (again.tx_hash, again.allowance_after_atomic) == (None, 3 * ATOMIC)
    assert transactions_of(net, unapproved) == 1


def test_a_transaction_that_waits_behind_another_names_what_must_be_mined_first(net, unapproved, monkeypatch):
    monkeypatch.setattr(transactions, "_RECEIPT_TIMEOUT_S", 0.5)

    def held(method, params, number):
        if method == "eth_getTransactionCount" and params[1] == "pending":
            return 200, {"result": "0x2"}
        return (200, {"result": "0x" + "22" * 32}) if method == "eth_sendRawTransaction" else None

    text = r"0x[0-9a-f]{64} and is not mined.*2 earlier transactions of 0x.* must be mined before it.*nonce 0 again"
    with pytest.raises(ChainUnavailable, match=text):
        approved_through(net, unapproved, held)


def test_a_receipt_of_another_transaction_is_no_word_about_this_one(net, unapproved, monkeypatch):
    """A cache in front of a node can mix answers up."""
    monkeypatch.setattr(transactions, "_RECEIPT_TIMEOUT_S", 0.5)
    other = wallet_of(new_payer(net, approved=False)).ensure_opg_approval("1").tx_hash

    def mixed_up(method, params, number):
        if method == "eth_getTransactionReceipt":
            return 200, {"result": net.chain.rpc(method, [other])}
        return (200, {"result": "0x" + "22" * 32}) if method == "eth_sendRawTransaction" else None

    with pytest.raises(ChainUnavailable, match=r"sent as 0x[0-9a-f]{64} and is not mined.*receipt of this transaction"):
        approved_through(net, unapproved, mixed_up)


def test_the_hash_of_a_sent_approval_is_not_lost_when_the_node_that_is_left_serves_another_chain(
    net, unapproved, monkeypatch
):
    monkeypatch.setattr(transactions, "_RECEIPT_TIMEOUT_S", 1.0)
    with serving(net.chain) as first, serving(net.chain) as second:
        second.misbehave = lambda method, params, number: (200, {"result": "0x1"}) if method == "eth_chainId" else None

        def dies(method, params, number):
            sent = first.count("eth_sendRawTransaction")
            return (401, {}) if sent and method != "eth_sendRawTransaction" else None

        first.misbehave = dies
        network = replace(unapproved.network, rpc_url=f"{first.url},{second.url}")
        with pytest.raises(ChainUnavailable, match=r"sent as 0x[0-9a-f]{64} and is not mined"):
            Wallet(network, unapproved.signer).ensure_opg_approval("1")
    assert wallet_of(unapproved).allowance() == 2 * ATOMIC


def test_a_node_that_is_slow_delays_a_first_payment_by_two_seconds_and_the_next_one_not_at_all(unapproved, facilitator):
    terms = unapproved.sign(facilitator=facilitator.address).accepted
    with socket.create_server(("127.0.0.1", 0)) as silent:
        network = replace(unapproved.network, rpc_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        funds = Funds(network=network, signer=unapproved.signer, policy=SpendPolicy())
        started = time.monotonic()
        funds.check(terms, None).result(8)
        assert 1.5 < time.monotonic() - started < 6
        assert funds.check(terms, None) is None
    funds.forget()
    assert funds.check(terms, None) is not None
