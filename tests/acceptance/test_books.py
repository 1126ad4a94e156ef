"""The books balance: three hundred mixed calls of both frameworks, explained to the last unit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
from langchain_core.tools import tool
from llama_index.core.tools import FunctionTool

from langchain_opengradient import ChatOpenGradient, get_settlement_callback
from llama_index_opengradient import OpenGradient
from opengradient_devnet import Devnet, Scheme
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.proofs.data_settlement import DataSettlements
from opengradient_x402.proofs.findings import Read
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.settlement_mode import SettlementMode
from support.matrix import one_in
from support.payers import network_of, opg_balance, payments_for

CALLS = 300
SCHEMES = ("upto", "exact", "batch-settlement")
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
MODEL = "openai/gpt-5-mini"


@tool
def token_price(symbol: str) -> str:
    """Look up the price of a token."""
    return f"{symbol} costs 1 USD"


def langchain_call(model: ChatOpenGradient, kind: int, mode: SettlementMode) -> None:
    match kind:
        case 0:
            model.invoke("What is x402?", settlement_mode=mode)
        case 1:
            list(model.stream("What is x402?", settlement_mode=mode))
        case 2:
            answer = model.bind_tools([token_price]).invoke("Look up the price of token 'ETH'", settlement_mode=mode)
            assert answer.tool_calls
        case 3:
            asyncio.run(model.ainvoke("What is x402?", settlement_mode=mode))
        case _:
            stream = model.stream("Count to 40, please, and take your time", settlement_mode=mode)
            next(stream)
            stream.close()


def llama_index_call(model: OpenGradient, kind: int, mode: SettlementMode) -> None:
    look_up = FunctionTool.from_defaults(token_price.func, name="token_price", description="Look up a token's price")
    match kind:
        case 0:
            model.complete("What is x402?", settlement_mode=mode)
        case 1:
            list(model.stream_complete("What is x402?", settlement_mode=mode))
        case 2:
            assert model.chat_with_tools([look_up], user_msg="Look up the price of token 'ETH'", settlement_mode=mode)
        case 3:
            asyncio.run(model.acomplete("What is x402?", settlement_mode=mode))
        case _:
            stream = model.stream_complete("Count to 40, please, and take your time", settlement_mode=mode)
            next(stream)
            stream.close()


def mixed_call(chats: Sequence[ChatOpenGradient], llms: Sequence[OpenGradient], number: int) -> None:
    """One of many calls: the wallets, faces, kinds of call and settlement modes take turns."""
    wallet, kind, mode = number % 3, number // 6 % 5, list(SettlementMode)[number // 30 % 3]
    if number // 3 % 2:
        langchain_call(chats[wallet], kind, mode)
    else:
        llama_index_call(llms[wallet], kind, mode)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("gateway", one_in(2, ["helpful", "gateway-2026-04"]))
def test_three_hundred_mixed_calls_of_three_wallets_are_explained_to_the_last_unit(gateway, tmp_path):
    with Devnet(batch_size=32, behaves_like=gateway) as net:
        accounts = [net.account(opg="10", approved=True) for _ in range(3)]
        before = [opg_balance(net, account.address) for account in accounts]
        with (
            payments_for(net, accounts[0], tmp_path / "0.sqlite") as first,
            payments_for(net, accounts[1], tmp_path / "1.sqlite") as second,
            payments_for(net, accounts[2], tmp_path / "2.sqlite") as third,
        ):
            payers = [first, second, third]
            chats = [ChatOpenGradient(model=MODEL, payments=payer) for payer in payers]
            llms = [OpenGradient(model=MODEL, payments=payer) for payer in payers]

            with get_settlement_callback(), ThreadPoolExecutor(6) as pool:
                list(pool.map(partial(mixed_call, chats, llms), range(CALLS)))
            net.close_sessions()
            net.flush_batches()

            receipts = []
            for payer in payers:
                Reconciler(payer.network, payer.ledger).reconcile()
                receipts.extend(payer.ledger.receipts().result())
            proofs = DataSettlements(network_of(net)).prove(
                [receipt for receipt in receipts if receipt.outcome == "ok" and receipt.settlement_mode != "private"]
            )
            for model in (*chats, *llms):
                model.close()

        assert len(receipts) == len({receipt.call_id for receipt in receipts}) == CALLS
        assert {(receipt.status, receipt.is_final) for receipt in receipts} == {(ReceiptStatus.SETTLED, True)}
        assert {receipt.settlement_mode for receipt in receipts} == {mode.value for mode in SettlementMode}
        assert {receipt.outcome for receipt in receipts} == {"ok", "abandoned"}

        spent = sum(receipt.settled_atomic for receipt in receipts)
        lost = [start - opg_balance(net, account.address) for start, account in zip(before, accounts, strict=True)]
        transfers = transfers_from(net, [account.address for account in accounts])
        assert spent == sum(lost) == sum(amount for _, amount in transfers) > 0
        for account, loss in zip(accounts, lost, strict=True):
            assert sum(r.settled_atomic for r in receipts if r.payer == account.address) == loss > 0

        assert {tx for tx, _ in transfers} == {receipt.payment_tx_hash for receipt in receipts}, "unexplained"
        assert len(transfers) == len({receipt.authorization_id for receipt in receipts})
        for receipt in receipts:
            assert receipt.payment_tx_hash
            assert receipt.block_hash
            assert receipt.outcome == "abandoned" or (receipt.tee_signature and receipt.tee_id)
        assert all({type(finding) for finding in proof.findings} == {Read} for proof in proofs)


@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_three_hundred_calls_in_three_schemes_of_one_gateway_are_explained_to_the_last_unit(tmp_path):
    with Devnet(batch_size=32, schemes=[Scheme.UPTO, Scheme.EXACT_PERMIT2, Scheme.BATCH_SETTLEMENT]) as net:
        accounts = [net.account(opg="40", approved=True) for _ in SCHEMES]
        before = [opg_balance(net, account.address) for account in accounts]
        with ExitStack() as stack:
            payers = [
                stack.enter_context(
                    payments_for(net, account, tmp_path / scheme, policy=SpendPolicy(schemes=[scheme, *SCHEMES[:i]]))
                )
                for i, (account, scheme) in enumerate(zip(accounts, SCHEMES, strict=True))
            ]
            chats = [stack.enter_context(ChatOpenGradient(model=MODEL, payments=payer)) for payer in payers]
            llms = [OpenGradient(model=MODEL, payments=payer) for payer in payers]

            with ThreadPoolExecutor(6) as pool:
                list(pool.map(partial(mixed_call, chats, llms), range(CALLS)))
            for model in llms:
                model.close()
            net.close_sessions()
            net.claim_channels()
            taken = payers[2].channels.refund()
            receipts = []
            for payer in payers:
                payer.reconciler.reconcile()
                receipts.append(payer.ledger.receipts().result())

        assert {one.is_done for one in taken} == {True}
        for account, start, scheme, own in zip(accounts, before, SCHEMES, receipts, strict=True):
            assert len({receipt.call_id for receipt in own}) == CALLS // 3
            assert {(receipt.scheme, receipt.status, receipt.is_final) for receipt in own} == {
                (scheme, ReceiptStatus.SETTLED, True)
            }
            spent = sum(receipt.settled_atomic for receipt in own)
            assert spent == start - opg_balance(net, account.address) > 0
        claimed = sum(one.channel.claimed_atomic for one in taken)
        assert claimed == sum(receipt.settled_atomic for receipt in receipts[2])
        assert claimed + sum(one.amount_atomic for one in taken) == sum(
            amount for _, amount in transfers_from(net, [accounts[2].address])
        )


def transfers_from(net: Devnet, addresses: list[str]) -> list[tuple[str, int]]:
    """(transaction, atomic amount) of every Transfer event that took OPG from one of these wallets."""
    payers = ["0x" + address[2:].lower().rjust(64, "0") for address in addresses]
    query = {"fromBlock": "0x0", "address": net.network["asset"]["address"], "topics": [TRANSFER, payers]}
    logs = net.chain.rpc("eth_getLogs", [query])
    return [(log["transactionHash"], int(log["data"], 16)) for log in logs]


def test_a_second_ledger_of_the_same_wallet_explains_only_its_own_calls(net, account, tmp_path):
    with payments_for(net, account, tmp_path / "a.sqlite") as mine:
        model = ChatOpenGradient(model=MODEL, payments=mine)
        model.invoke("Hello")
        model.close()
        net.close_sessions()
        other = Ledger(tmp_path / "b.sqlite")
        assert Reconciler(mine.network, other).reconcile(payer=account.address).asked == 0
        assert other.receipts().result() == []
        other.close()
