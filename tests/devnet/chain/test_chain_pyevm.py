"""The embedded chain: time, transactions, state, logs and threads."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from eth_account import Account as EthAccount

from opengradient_devnet.chain.chain import RpcError, sign_transaction
from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.contracts import OPG, contract
from support.chain_parties import funded_party, new_party

TOKEN = contract("OPG")
TIMESTAMP_CODE = "0x4260005260206000f3"  # TIMESTAMP, MSTORE, RETURN


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time_s = 1_800_000_000.25

    def __call__(self) -> float:
        return self.time_s


def call_time_s(chain):
    nowhere = "0x" + "77" * 20
    answer = chain.rpc("eth_call", [{"to": nowhere}, "latest", {nowhere: {"code": TIMESTAMP_CODE}}])
    return int(answer, 16)


def head_time_s(chain):
    return int(chain.rpc("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)


def assert_on_time(chain):
    """Calls and the head block tell the time of now, however slow the machine is."""
    for told in (call_time_s, head_time_s):
        asked_s = time.time()
        assert asked_s - 2 < told(chain) < time.time() + 2


def signed_transfer(chain, party, *, nonce, value=1):
    return (
        "0x"
        + sign_transaction(
            party.private_key,
            chain_id=chain.chain_id,
            nonce=nonce,
            to="0x" + "11" * 20,
            data=b"",
            value=value,
            gas=21_000,
            max_fee_wei=10**10,
            priority_fee_wei=1,
        ).hex()
    )


@pytest.fixture(scope="module")
def chain():
    return PyEvmChain()


def test_it_starts_in_well_under_a_second_of_work():
    started = time.process_time()
    PyEvmChain()
    assert time.process_time() - started < 0.6


def test_after_an_idle_minute_calls_and_head_block_tell_the_time_of_now():
    clock = Clock()
    chain = PyEvmChain(clock=clock)
    clock.time_s += 60
    assert call_time_s(chain) == int(clock.time_s)
    assert head_time_s(chain) == int(clock.time_s)
    assert chain.now_s() == int(clock.time_s)


def test_a_block_mined_after_an_idle_minute_carries_the_time_of_now():
    clock = Clock()
    chain = PyEvmChain(clock=clock)
    party = funded_party(chain)
    clock.time_s += 60
    receipt = chain.send(party, to=OPG, data=TOKEN.encode("approve", OPG, 1))
    block = chain.rpc("eth_getBlockByNumber", [receipt["blockNumber"], False])
    assert int(block["timestamp"], 16) == int(clock.time_s)


def test_three_hundred_quick_transactions_do_not_push_the_clock():
    chain = PyEvmChain()
    party = funded_party(chain)
    times_s = set()
    for nonce in range(300):
        chain.rpc("eth_sendRawTransaction", [signed_transfer(chain, party, nonce=nonce)])
        times_s.add(head_time_s(chain))
    assert_on_time(chain)
    assert len(times_s) < 300, "blocks share seconds: equal timestamps were not refused"
    assert int(chain.rpc("eth_getTransactionCount", [party.address, "latest"]), 16) == 300


def test_a_clock_that_goes_back_does_not_stop_the_chain():
    clock = Clock()
    chain = PyEvmChain(clock=clock)
    party = funded_party(chain)
    before = head_time_s(chain)
    clock.time_s -= 3600
    assert chain.send(party, to=OPG, data=TOKEN.encode("approve", OPG, 1))["status"] == "0x1"
    assert head_time_s(chain) >= before


@pytest.mark.soak
def test_after_a_real_idle_minute_calls_and_blocks_are_on_time():
    chain = PyEvmChain()
    time.sleep(60)
    assert_on_time(chain)


@pytest.mark.parametrize("chain_id", [1337, 8453, 10740, 2**40])
def test_any_chain_id_works(chain_id):
    chain = PyEvmChain(chain_id=chain_id)
    assert int(chain.rpc("eth_chainId", []), 16) == chain_id
    assert chain.rpc("net_version", []) == str(chain_id)
    assert chain.send(chain.faucet, to=OPG, data=TOKEN.encode("mint", OPG, 1))["status"] == "0x1"


def test_funding_gives_exactly_what_was_asked(chain):
    party = new_party()
    chain.fund(party.address, token_atomic=2_500_000 * 10**18 + 1, native_wei=7)
    assert chain.token_balance(party.address) == 2_500_000 * 10**18 + 1, "more than one mint allows"
    assert chain.balance(party.address) == 7


def test_logs_of_five_hundred_blocks_are_found_with_under_a_tenth_of_a_second_of_work():
    chain = PyEvmChain()
    party = funded_party(chain)
    receiver = "0x" + "ab" * 20
    data = TOKEN.encode("transfer", receiver, 1)
    for _ in range(500):
        chain.send(party, to=OPG, data=data)
    topics = [TOKEN.topic("Transfer"), None, "0x" + receiver[2:].rjust(64, "0")]
    query = {"fromBlock": "0x0", "toBlock": "latest", "address": OPG, "topics": topics}
    started = time.process_time()
    logs = chain.rpc("eth_getLogs", [query])
    assert time.process_time() - started < 0.1
    assert len(logs) == 500
    assert [int(log["blockNumber"], 16) for log in logs] == sorted(int(log["blockNumber"], 16) for log in logs)


def test_log_filters_choose_by_block_address_and_topic(chain):
    party = funded_party(chain)
    first = chain.send(party, to=OPG, data=TOKEN.encode("transfer", OPG, 1))
    second = chain.send(party, to=OPG, data=TOKEN.encode("approve", OPG, 2))
    approval, transfer = TOKEN.topic("Approval"), TOKEN.topic("Transfer")
    wide = {"fromBlock": first["blockNumber"], "toBlock": second["blockNumber"]}

    def found(**query):
        return [log["transactionHash"] for log in chain.rpc("eth_getLogs", [query])]

    both = [first["transactionHash"], second["transactionHash"]]
    assert found(**wide) == both
    assert found(**wide, topics=[approval]) == both[1:]
    assert found(**wide, topics=[[approval, transfer]]) == both
    assert found(**wide, topics=[[]]) == both
    assert found(**wide, topics=[None, None, None, None]) == [], "no log has four topics"
    assert found(**wide, address=["0x" + "01" * 20, OPG.lower()]) == both
    assert found(**wide, address="0x" + "01" * 20) == []
    assert found(blockHash=first["blockHash"]) == both[:1]
    assert found(fromBlock=second["blockNumber"], toBlock=hex(10**6)) == both[1:], "a range may pass the head"
    assert found(fromBlock=second["blockNumber"], toBlock=first["blockNumber"]) == []


def test_eight_threads_send_without_losing_a_transaction(chain):
    parties = [funded_party(chain) for _ in range(4)]
    receiver = new_party().address

    def send(index):
        data = TOKEN.encode("transfer", receiver, 3)
        return chain.send(parties[index % 4], to=OPG, data=data)["status"]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(64))) == {"0x1"}
    assert chain.token_balance(receiver) == 64 * 3


def test_transactions_that_overtake_each_other_are_mined_in_order(chain):
    party = funded_party(chain)
    hashes = [chain.rpc("eth_sendRawTransaction", [signed_transfer(chain, party, nonce=nonce)]) for nonce in (2, 1, 0)]
    receipts = [chain.rpc("eth_getTransactionReceipt", [tx_hash]) for tx_hash in hashes]
    blocks = [int(receipt["blockNumber"], 16) for receipt in receipts]
    assert blocks == [blocks[2] + 2, blocks[2] + 1, blocks[2]]


def test_a_waiting_transaction_has_no_receipt_and_counts_as_pending_once_the_gap_is_closed(chain):
    party = funded_party(chain)
    tx_hash = chain.rpc("eth_sendRawTransaction", [signed_transfer(chain, party, nonce=1)])
    assert chain.rpc("eth_getTransactionReceipt", [tx_hash]) is None
    assert chain.rpc("eth_getTransactionCount", [party.address, "pending"]) == "0x0"
    chain.rpc("eth_sendRawTransaction", [signed_transfer(chain, party, nonce=0)])
    assert chain.rpc("eth_getTransactionCount", [party.address, "pending"]) == "0x2"


def test_a_transaction_that_cannot_be_mined_is_refused_in_words_that_clients_know(chain):
    party, pauper = funded_party(chain), new_party()
    raw = signed_transfer(chain, party, nonce=0)
    chain.rpc("eth_sendRawTransaction", [raw])
    other_chain = PyEvmChain(chain_id=1)
    for transaction, words in [
        (raw, "already known"),
        (signed_transfer(chain, party, nonce=0, value=2), "nonce too low"),
        (signed_transfer(chain, pauper, nonce=0), "insufficient funds"),
        (signed_transfer(other_chain, party, nonce=1), "invalid chain id"),
        ("0x02c0", "not a signed transaction"),
        ("0x", "not a signed transaction"),
    ]:
        with pytest.raises(RpcError, match=words) as refused:
            chain.rpc("eth_sendRawTransaction", [transaction])
        assert refused.value.code == -32000


def test_a_reverting_transaction_is_mined_and_says_so(chain):
    party = funded_party(chain, opg_atomic=0)
    receipt = chain.send(party, to=OPG, data=TOKEN.encode("transfer", OPG, 1))
    assert receipt["status"] == "0x0"
    assert receipt["logs"] == []


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_transactions_of_every_type_are_shown_as_they_were_signed(chain, kind):
    party = funded_party(chain)
    fields = {"nonce": 0, "to": OPG, "value": 0, "gas": 100_000, "chainId": chain.chain_id}
    fields["data"] = "0x" + TOKEN.encode("approve", OPG, 5).hex()
    storage_key = "0x" + "00" * 31 + "01"
    if kind == 2:
        fields |= {"type": 2, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**6}
    else:
        fields |= {"gasPrice": 10**10}
    if kind == 1:
        fields |= {"type": 1, "accessList": [{"address": OPG, "storageKeys": [storage_key]}]}
    signed = EthAccount.sign_transaction(fields, party.private_key)
    tx_hash = chain.rpc("eth_sendRawTransaction", ["0x" + signed.raw_transaction.hex().removeprefix("0x")])
    shown, receipt = (chain.rpc(f"eth_getTransaction{what}", [tx_hash]) for what in ("ByHash", "Receipt"))
    assert tx_hash == "0x" + signed.hash.hex().removeprefix("0x")
    assert int(shown["type"], 16) == int(receipt["type"], 16) == kind
    assert (int(shown["v"], 16), int(shown["r"], 16), int(shown["s"], 16)) == (signed.v, signed.r, signed.s)
    assert shown["from"] == party.address
    assert shown["input"] == fields["data"]
    assert int(shown["chainId"], 16) == chain.chain_id
    if kind == 1:
        assert shown["accessList"] == [{"address": OPG, "storageKeys": [storage_key]}]
    if kind == 2:
        assert int(shown["maxFeePerGas"], 16) == 10**11
        block = chain.rpc("eth_getBlockByNumber", [receipt["blockNumber"], False])
        assert int(receipt["effectiveGasPrice"], 16) == int(block["baseFeePerGas"], 16) + 10**6
    assert shown["gasPrice"] == receipt["effectiveGasPrice"]


def test_blocks_hold_hashes_or_whole_transactions_and_are_found_by_hash(chain):
    party = funded_party(chain)
    receipt = chain.send(party, to=OPG, data=TOKEN.encode("approve", OPG, 5))
    slim = chain.rpc("eth_getBlockByNumber", [receipt["blockNumber"], False])
    full = chain.rpc("eth_getBlockByHash", [slim["hash"], True])
    assert slim["transactions"] == [receipt["transactionHash"]]
    assert full["transactions"] == [chain.rpc("eth_getTransactionByHash", [receipt["transactionHash"]])]
    assert chain.rpc("eth_getBlockReceipts", [receipt["blockNumber"]]) == [receipt]
    assert chain.rpc("eth_getBlockByNumber", [hex(10**9), False]) is None
    parent = chain.rpc("eth_getBlockByHash", [slim["parentHash"], False])
    assert int(parent["number"], 16) == int(slim["number"], 16) - 1


def test_the_state_of_an_earlier_block_can_still_be_read(chain):
    party = funded_party(chain, opg_atomic=10)
    before = chain.rpc("eth_blockNumber", [])
    chain.send(party, to=OPG, data=TOKEN.encode("transfer", OPG, 4))
    call = {"to": OPG, "data": "0x" + TOKEN.encode("balanceOf", party.address).hex()}
    assert int(chain.rpc("eth_call", [call, before]), 16) == 10
    assert int(chain.rpc("eth_call", [call, "latest"]), 16) == 6
    assert chain.rpc("eth_getTransactionCount", [party.address, before]) == "0x0"


def test_a_reverting_call_answers_code_3_with_the_revert_data(chain):
    data = contract("UptoProxy").encode("settle", ((OPG, 1), 1, 1), 5, OPG, (OPG, OPG, 0), b"")
    with pytest.raises(RpcError, match=r"AmountExceedsPermitted\(\)") as reverted:
        chain.rpc("eth_call", [{"to": contract("UptoProxy").address, "data": "0x" + data.hex()}, "latest"])
    assert reverted.value.code == 3
    assert reverted.value.data == "0xfe64b4c7"


def test_calls_may_pretend_balances_and_storage_and_change_nothing(chain):
    rich = new_party().address
    transaction = {"from": rich, "to": new_party().address, "value": hex(10**18)}
    with pytest.raises(RpcError, match="insufficient funds"):
        chain.rpc("eth_call", [transaction, "latest"])
    assert chain.rpc("eth_call", [transaction, "latest", {rich: {"balance": hex(10**19)}}]) == "0x"
    assert chain.balance(rich) == 0


def test_estimated_gas_is_enough_and_not_much_more(chain):
    party = funded_party(chain)
    data = TOKEN.encode("transfer", new_party().address, 1)
    estimate = int(chain.rpc("eth_estimateGas", [{"from": party.address, "to": OPG, "data": "0x" + data.hex()}]), 16)
    raw = sign_transaction(
        party.private_key,
        chain_id=chain.chain_id,
        nonce=0,
        to=OPG,
        data=data,
        value=0,
        gas=estimate,
        max_fee_wei=10**10,
        priority_fee_wei=1,
    )
    receipt = chain.rpc("eth_getTransactionReceipt", [chain.rpc("eth_sendRawTransaction", ["0x" + raw.hex()])])
    assert receipt["status"] == "0x1"
    assert estimate < 1.2 * int(receipt["gasUsed"], 16)


def test_fee_history_has_a_fee_for_each_block_and_the_next(chain):
    history = chain.rpc("eth_feeHistory", ["0x3", "latest", [25, 75]])
    assert len(history["baseFeePerGas"]) == len(history["gasUsedRatio"]) + 1 == 4
    assert [len(rewards) for rewards in history["reward"]] == [2, 2, 2]


def test_calls_nest_as_deeply_as_the_evm_allows_and_json_cannot_overflow_the_stack(chain):
    recursive = "0x" + "60006000600060006000305af100"  # CALL itself with all the gas, then STOP
    nowhere = "0x" + "66" * 20
    bomb = b"[" * 100_000

    def work():
        assert chain.rpc("eth_call", [{"to": nowhere}, "latest", {nowhere: {"code": recursive}}]) == "0x"
        with pytest.raises(RecursionError):
            json.loads(bomb)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


# Reorganisations


def transfer(chain, party, amount=10**18):
    return chain.send(party, to=OPG, data=TOKEN.encode("transfer", "0x" + "33" * 20, amount))["transactionHash"]


def head(chain):
    return int(chain.rpc("eth_blockNumber", []), 16)


def test_a_reorganisation_mines_the_same_transactions_in_other_blocks():
    chain = PyEvmChain()
    party = funded_party(chain, opg_atomic=10**19)
    hashes = [transfer(chain, party), transfer(chain, party)]
    before, number = [chain.rpc("eth_getTransactionReceipt", [tx_hash]) for tx_hash in hashes], head(chain)
    query = {"fromBlock": "0x0", "address": OPG}
    logs = len(chain.rpc("eth_getLogs", [query]))

    assert chain.reorganise(2) == []
    after = [chain.rpc("eth_getTransactionReceipt", [tx_hash]) for tx_hash in hashes]
    assert not {receipt["blockHash"] for receipt in before} & {receipt["blockHash"] for receipt in after}
    assert chain.rpc("eth_getBlockByHash", [before[0]["blockHash"], False]) is None
    assert head(chain) > number
    assert chain.token_balance(party.address) == 10**19 - 2 * 10**18
    found = chain.rpc("eth_getLogs", [query])
    assert len(found) == logs
    assert [log["blockHash"] for log in found[-2:]] == [receipt["blockHash"] for receipt in after]


def test_a_reorganisation_can_lose_everything_and_the_chain_goes_on():
    chain = PyEvmChain()
    party = funded_party(chain, opg_atomic=10**19)
    hashes = [transfer(chain, party), transfer(chain, party)]
    number = head(chain)

    assert chain.reorganise(2, lose="all") == hashes
    assert head(chain) == number + 1
    for tx_hash in hashes:
        assert chain.rpc("eth_getTransactionByHash", [tx_hash]) is None
        assert chain.rpc("eth_getTransactionReceipt", [tx_hash]) is None
    assert chain.token_balance(party.address) == 10**19
    transfer(chain, party)
    assert chain.token_balance(party.address) == 9 * 10**18
    blocks = [chain.rpc("eth_getBlockByNumber", [hex(place), False]) for place in range(head(chain) + 1)]
    assert all(child["parentHash"] == parent["hash"] for parent, child in itertools.pairwise(blocks))


def test_who_is_overtaken_by_a_lost_transaction_waits_for_its_nonce():
    chain = PyEvmChain()
    party = funded_party(chain, opg_atomic=10**19)
    first, second = transfer(chain, party), transfer(chain, party, 2 * 10**18)
    raw = chain.rpc("eth_getRawTransactionByHash", [first])

    assert chain.reorganise(2, lose=[first.upper().replace("0X", "0x")]) == [first, second]
    chain.rpc("eth_sendRawTransaction", [raw])
    assert chain.rpc("eth_getTransactionReceipt", [second])["status"] == "0x1"
    assert chain.token_balance(party.address) == 7 * 10**18


@pytest.mark.parametrize("depth", [0, -1, 10_000])
def test_only_blocks_that_there_are_can_be_replaced(chain, depth):
    with pytest.raises(ValueError, match="cannot be replaced"):
        chain.reorganise(depth)


def test_a_raw_transaction_is_given_back_as_it_was_sent(chain):
    party = funded_party(chain)
    raw = signed_transfer(chain, party, nonce=0)
    tx_hash = chain.rpc("eth_sendRawTransaction", [raw])

    assert chain.rpc("eth_getRawTransactionByHash", [tx_hash]) == raw
    assert chain.rpc("eth_getRawTransactionByHash", ["0x" + "00" * 32]) is None
