"""An Ethereum virtual machine on py-evm: one block for each transaction, with the time of the machine's clock.

It executes, mines and stores. It is not thread-safe (`pyevm` puts a lock around it); JSON-RPC is in `methods`.

Why not eth-tester: after 12 s idle its calls ran 12 s in the past, 200 quick transactions pushed its clock
187 s into the future (a 300 s payment deadline does not survive that), and its logs are scanned, not indexed.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from eth import EVM_RECURSION_LIMIT
from eth.abc import (
    BlockAPI,
    BlockHeaderAPI,
    ComputationAPI,
    ReceiptAPI,
    SignedTransactionAPI,
    StateAPI,
    VirtualMachineAPI,
)
from eth.chains.base import MiningChain
from eth.constants import POST_MERGE_DIFFICULTY, POST_MERGE_MIX_HASH, POST_MERGE_NONCE, ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert
from eth.vm.forks.cancun import CancunVM
from eth.vm.forks.cancun.computation import CancunComputation
from eth.vm.forks.cancun.state import CancunState
from eth.vm.spoof import SpoofTransaction
from eth_keys.exceptions import BadSignature
from eth_typing import Address, BlockNumber
from eth_utils.address import to_canonical_address, to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError
from rlp import encode as rlp_encode  # type: ignore[import-untyped]  # rlp has no py.typed
from rlp.exceptions import RLPException  # type: ignore[import-untyped]  # rlp has no py.typed

from opengradient_devnet.chain.blocks import (
    BlockStore,
    MinedBlock,
    base_fee_wei,
    effective_gas_price_wei,
    hex_data,
    receipt_json,
    transaction_json,
)
from opengradient_devnet.chain.calls import CallRequest, ExecutionFailed
from opengradient_devnet.chain.logs import LogIndex

# py-evm asks Python for 12,288 frames, which 1,024 nested calls need, but py_ecc, which it imports, for 100,000.
# CPython 3.11 counts C frames with them: 100 KB of "[" would then overflow a thread's stack in the JSON parser
# of whatever server shares the process, and kill it.
sys.setrecursionlimit(min(sys.getrecursionlimit(), EVM_RECURSION_LIMIT))

BLOCK_GAS = 30_000_000
BLOCK_TIME_S = 2  # Base's
MAX_QUEUED = 64  # transactions of one account that may wait for an earlier nonce
# A call may use this much of a processor (a busy machine is not its fault): everybody else waits for it, and a loop
# uses up a block's gas only after minutes.
CALL_TIME_S = 2.0
_STEPS_A_LOOK = 64  # a look at the clock takes longer than most instructions
# In a call the sender is given this much, so that gas costs it nothing (geth does the same).
_CALL_WEI = 2**200
_REFUSALS = (ValidationError, RLPException, BadSignature, ValueError, TypeError)


class TransactionRefused(ValueError):
    """The transaction can never be mined as it is (or is known already); nothing changed."""


class _CallTookTooLong(Exception):
    """No error of the machine's own: those end the innermost call only, and its caller goes on."""


class _Watch:
    """Ends what takes longer than `CALL_TIME_S` of this thread's time."""

    def __init__(self) -> None:
        self.steps = 0
        self._give_up_at_s = time.thread_time() + CALL_TIME_S

    def look(self) -> None:
        if time.thread_time() > self._give_up_at_s:
            raise _CallTookTooLong


class _WatchedComputation(CancunComputation):
    def consume_gas(self, amount: int, reason: str) -> None:
        # Every instruction comes by here: this is a tenth of what a call takes.
        watch: _Watch = self.state.watch  # type: ignore[attr-defined]
        watch.steps += 1
        if watch.steps % _STEPS_A_LOOK == 0:
            watch.look()
        super().consume_gas(amount, reason)


class _DevnetState(CancunState):
    watch: _Watch

    def limit_time(self) -> None:
        """For calls. A transaction has no limit: what is signed is mined."""
        self.watch = _Watch()
        self.computation_class = _WatchedComputation


class _DevnetVM(CancunVM):
    _state_class = _DevnetState

    def validate_block(self, block: BlockAPI) -> None:
        """Blocks are of our own making; checking them again would double the cost of each."""

    @classmethod
    def validate_header(cls, header: BlockHeaderAPI, parent_header: BlockHeaderAPI) -> None:
        # Several blocks share a second here; mainnet's rule of rising times would push the clock forward.
        follows = header.block_number == parent_header.block_number + 1
        if not follows or header.timestamp < parent_header.timestamp:
            raise ValidationError(f"block {header.block_number} does not follow {parent_header.block_number}")


class Evm:
    """Accounts, blocks and logs. `clock` tells seconds; `genesis` maps addresses to py-evm accounts."""

    def __init__(self, *, chain_id: int, genesis: Mapping[str, Mapping[str, Any]], clock: Callable[[], float]) -> None:
        self.chain_id = chain_id
        self._clock = clock
        self.blocks = BlockStore()
        self.logs = LogIndex()
        self._queued: defaultdict[bytes, dict[int, SignedTransactionAPI]] = defaultdict(dict)
        self._chain = self._from_genesis(genesis)
        block = self._chain.get_canonical_block_by_number(BlockNumber(0))
        self.blocks.add(MinedBlock(block=block, hash=hex_data(block.hash), tx_hashes=()))

    def _from_genesis(self, accounts: Mapping[str, Mapping[str, Any]]) -> MiningChain:
        evm = self

        class DevnetChain(MiningChain):
            chain_id = evm.chain_id
            vm_configuration = ((BlockNumber(0), _DevnetVM),)

            def create_header_from_parent(self, parent_header: BlockHeaderAPI, **header_params: Any) -> BlockHeaderAPI:
                header_params.setdefault("gas_limit", BLOCK_GAS)
                header_params.setdefault("timestamp", max(evm.now_s(), parent_header.timestamp))
                return super().create_header_from_parent(parent_header, **header_params)

        head: dict[str, Any] = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": BLOCK_GAS,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "timestamp": self.now_s(),
        }
        state: dict[Any, Any] = {to_canonical_address(who): account for who, account in accounts.items()}
        return cast("MiningChain", DevnetChain.from_genesis(AtomicDB(), head, state))

    def now_s(self) -> int:
        return int(self._clock())

    @property
    def next_timestamp(self) -> int:
        return max(self.now_s(), self.blocks.head.header.timestamp)

    @property
    def base_fee_wei(self) -> int:
        """The base fee of the next block."""
        return base_fee_wei(self._chain.header)

    def state(self, at: MinedBlock) -> StateAPI:
        """The state after a block. Every block's state is kept."""
        return self._chain.get_vm(at.header).state

    def pending_nonce(self, address: bytes) -> int:
        """The next free nonce, counting the transactions that wait without a gap."""
        nonce = self.state(self.blocks.head).get_nonce(to_canonical_address(address))
        while nonce in self._queued[address]:
            nonce += 1
        return nonce

    # Sending.

    def submit(self, raw: bytes) -> str:
        """Mine a signed transaction in a block of its own, and those that waited for it; returns its hash.

        One with a future nonce waits, as in the pool of a node: parallel senders do overtake each other.
        """
        try:
            transaction = self._pending_vm().get_transaction_builder().decode(raw)
            sender = transaction.sender
        except _REFUSALS as exc:
            raise TransactionRefused(f"not a signed transaction: {exc}") from exc
        tx_hash = hex_data(transaction.hash)
        if self.blocks.receipt(tx_hash) is not None:
            raise TransactionRefused("already known")
        if transaction.nonce > self.state(self.blocks.head).get_nonce(sender):
            self._hold(sender, transaction)
            return tx_hash
        self._mine(transaction)
        nonce = transaction.nonce + 1
        while (waiting := self._queued[sender].pop(nonce, None)) is not None:
            self._mine(waiting)
            nonce += 1
        return tx_hash

    def _hold(self, sender: bytes, transaction: SignedTransactionAPI) -> None:
        self._check(transaction)
        if len(self._queued[sender]) >= MAX_QUEUED:
            raise TransactionRefused(f"txpool is full: {MAX_QUEUED} transactions of this account wait")
        self._queued[sender][transaction.nonce] = transaction

    def _check(self, transaction: SignedTransactionAPI) -> None:
        """Refuses what can never be mined, before it waits: later its sender would not learn of it."""
        signed_for = getattr(transaction, "chain_id", None)
        if signed_for not in (None, self.chain_id):
            raise TransactionRefused(f"invalid chain id: signed for {signed_for}, not {self.chain_id}")
        if transaction.gas > BLOCK_GAS:
            raise TransactionRefused(f"exceeds block gas limit: {transaction.gas} > {BLOCK_GAS}")

    def _mine(self, transaction: SignedTransactionAPI) -> None:
        self._check(transaction)
        try:
            mined, (receipt,), (computation,) = self._mined([transaction])
        except _REFUSALS as exc:
            raise TransactionRefused(_geth_words(str(exc))) from exc
        price_wei = effective_gas_price_wei(transaction, base_fee_wei(mined.header))
        shown = transaction_json(transaction, chain_id=self.chain_id)
        shown = {**shown, **mined.place, "gasPrice": hex(price_wei)}
        created = None if transaction.to or computation.is_error else _created_address(transaction)
        told = receipt_json(receipt, mined=mined, transaction=shown, failed=bool(computation.is_error), created=created)
        self.blocks.add_transaction(shown, told, raw=transaction.encode())
        for log in told["logs"]:
            self.logs.add(log, block_number=mined.number)

    def keep_up(self) -> None:
        """Mine an empty block when the head is old, as a chain with regular blocks would have done.

        Asked for by those who read the head: a deadline could never be seen to pass on an idle chain.
        """
        if self.next_timestamp - self.blocks.head.header.timestamp >= BLOCK_TIME_S:
            self.mine_empty()

    def mine_empty(self) -> None:
        """A block without transactions, at the time of now."""
        self._mined([])

    def _mined(
        self, transactions: Sequence[SignedTransactionAPI]
    ) -> tuple[MinedBlock, Sequence[ReceiptAPI], Sequence[ComputationAPI]]:
        """The new head, made by one machine: py-evm's own way, step by step, makes three and each state root twice."""
        vm = self._pending_vm()
        header, receipts, computations = vm.apply_all_transactions(transactions, self._chain.header)
        filled = vm.set_block_transactions_and_withdrawals(vm.get_block(), header, transactions, receipts)
        block = vm.mine_block(filled, mix_hash=secrets.token_bytes(32)).block
        self._chain.chaindb.persist_block(block)
        self._chain.header = self._chain.create_header_from_parent(block.header)
        tx_hashes = tuple(hex_data(transaction.hash) for transaction in transactions)
        mined = MinedBlock(block=block, hash=hex_data(block.hash), tx_hashes=tx_hashes)
        self.blocks.add(mined)
        return mined, receipts, computations

    def rewind(self, block_count: int) -> None:
        """Forget the last blocks: state, transactions and logs are as they were before them."""
        self.blocks.rewind(block_count)
        head = self.blocks.head
        self.logs.rewind(to_block=head.number)
        self._chain.header = self._chain.create_header_from_parent(head.header)

    # Calling.

    def execute(self, request: CallRequest, *, at: MinedBlock | None = None) -> bytes:
        """Run a call on the state of a block (None: the head, now); raises `ExecutionFailed`."""
        computation = self._run(request, at=at)
        if computation.is_error:
            raise _failure(computation)
        return bytes(computation.output)

    def estimate_gas(self, request: CallRequest) -> int:
        """Enough gas for the call, and little more; raises `ExecutionFailed` when no amount is enough."""
        computation = self._run(request, at=None)
        if computation.is_error:
            raise _failure(computation)
        used = _call_gas(request) - computation.get_gas_remaining()
        # An inner call is given at most 63/64 of what is left (EIP-150), so what was used may not suffice.
        gas = used + used // 63 + 2_000
        while gas < BLOCK_GAS and self._run(replace(request, gas=gas), at=None).is_error:
            gas = gas * 3 // 2
        return int(min(gas, BLOCK_GAS))

    def _run(self, request: CallRequest, *, at: MinedBlock | None) -> ComputationAPI:
        vm = self._pending_vm() if at is None else self._chain.get_vm(at.header)
        for address, override in request.overrides.items():
            override.apply(vm.state, address)
        sender = to_canonical_address(request.sender)
        transaction = vm.create_unsigned_transaction(
            nonce=vm.state.get_nonce(sender),
            gas_price=vm.state.base_fee,
            gas=_call_gas(request),
            to=Address(request.to),
            value=request.value,
            data=request.data,
        )
        if request.value > vm.state.get_balance(sender):
            raise ExecutionFailed("insufficient funds for transfer", output=None)
        vm.state.set_balance(sender, _CALL_WEI)
        spoofed = SpoofTransaction(transaction, from_=sender)
        cast("_DevnetState", vm.state).limit_time()
        try:
            return vm.state.apply_transaction(cast("SignedTransactionAPI", spoofed))
        except _CallTookTooLong as exc:
            raise ExecutionFailed(f"execution aborted (timeout = {CALL_TIME_S:g}s)", output=None) from exc
        except _REFUSALS as exc:
            raise ExecutionFailed(_geth_words(str(exc)), output=None) from exc

    def _pending_vm(self) -> VirtualMachineAPI:
        """A fresh machine on the head state, in a block of now. Thrown away, it changes nothing."""
        self._touch()
        return self._chain.get_vm()

    def _touch(self) -> None:
        # The pending header was made when the last block was mined, however long ago.
        self._chain.header = self._chain.header.copy(timestamp=self.next_timestamp)


def _call_gas(request: CallRequest) -> int:
    """As with any node, a call has at most a block's gas, whatever it asks for."""
    return min(request.gas or BLOCK_GAS, BLOCK_GAS)


def _failure(computation: ComputationAPI) -> ExecutionFailed:
    if isinstance(computation.error, Revert):
        return ExecutionFailed("execution reverted", output=bytes(computation.output))
    return ExecutionFailed(f"{type(computation.error).__name__}: {computation.error}", output=None)


def _created_address(transaction: SignedTransactionAPI) -> str:
    return to_checksum_address(keccak(rlp_encode([transaction.sender, transaction.nonce]))[12:])


def _geth_words(message: str) -> str:
    """py-evm's refusal with the words clients look for in front (web3.py and wallets match geth's texts)."""
    lower = message.lower()
    if "nonce" in lower:
        return f"nonce too low: {message}"
    if "afford" in lower or "enough balance" in lower:
        return f"insufficient funds for gas * price + value: {message}"
    if "base fee" in lower or "base_fee" in lower:
        return f"max fee per gas less than block base fee: {message}"
    return message
