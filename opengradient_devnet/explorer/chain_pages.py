"""Pages about the chain itself: blocks, transactions, accounts. `reader` has read what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opengradient_devnet.explorer.layout import facts, lead, note, raw, section, table, unfolds
from opengradient_devnet.explorer.markup import Html, Node, element, fragment
from opengradient_devnet.explorer.notation import Notation, badge, number, opg, utc
from opengradient_devnet.explorer.reader import Block, Event, Transaction, called, contract_name
from opengradient_devnet.explorer.settle_calls import SettleCall

_GWEI = 10**9
_WEI_DIGITS = 18
_TIMES = frozenset({"deadline", "validAfter", "validBefore", "timestamp"})
_OPG_AMOUNTS = frozenset({"value", "amount"})
_LONGEST_BYTES = 64


def coins(wei: int) -> str:
    """Native coins, exact."""
    whole, rest = divmod(wei, 10**_WEI_DIGITS)
    digits = f"{rest:0{_WEI_DIGITS}d}".rstrip("0")
    return f"{whole}.{digits} ETH" if digits else f"{whole} ETH"


def verb(to: str | None, data: bytes, *, value_wei: int = 0) -> str:
    """What a transaction does, in a word or two."""
    if to is None:
        return "deploys a contract"
    name, (function, _arguments) = contract_name(to), called(to, data)
    if function is None:
        return "sends coins" if value_wei and not data else "calls a contract" if data else "sends nothing"
    return {
        ("UptoProxy", "settle"): "settles a payment",
        ("UptoProxy", "settleWithPermit"): "settles a payment",
        ("ExactProxy", "settle"): "settles a payment",
        ("ExactProxy", "settleWithPermit"): "settles a payment",
        ("OPG", "transferWithAuthorization"): "settles a payment",
        ("OPG", "approve"): "approves a spender",
        ("OPG", "transfer"): "sends OPG",
        ("OPG", "mint"): "mints OPG",
        ("Permit2", "invalidateUnorderedNonces"): "cancels authorizations",
        ("Relay", "batchSettle"): "records a batch of calls",
        ("Relay", "settleIndividual"): "records a call",
        ("TEERegistry", "registerTEE"): "registers an enclave",
    }.get((name or "", function), f"{name}.{function}")


def blocks_table(blocks: Sequence[Block], notation: Notation) -> Html:
    rows: list[list[Node]] = [
        [
            notation.block(block.number),
            notation.time(block.time_s),
            _count(len(block.transactions), "transaction"),
            number(block.gas_used),
            notation.hash(block.hash),
        ]
        for block in blocks
    ]
    return table(["Block", "Mined", "Holds", "Gas", "Hash"], rows, empty="There are no blocks here.")


def transactions_table(transactions: Sequence[tuple[Block, dict[str, Any]]], notation: Notation) -> Html:
    rows: list[list[Node]] = []
    for block, transaction in transactions:
        does = verb(transaction["to"], bytes.fromhex(transaction["input"][2:]), value_wei=int(transaction["value"], 16))
        rows.append(
            [
                notation.transaction(transaction["hash"]),
                does,
                notation.address(transaction["from"]),
                notation.address(transaction["to"]),
                notation.block(block.number),
                notation.time(block.time_s),
            ]
        )
    return table(["Transaction", "Does", "From", "To", "Block", "Mined"], rows, empty="No transactions yet.")


def block_body(block: Block, notation: Notation, *, head_number: int) -> Html:
    """Everything about one block."""
    return fragment(
        facts(
            ("Hash", element("code", block.hash)),
            ("Mined", fragment(utc(block.time_s), " · ", notation.age(block.time_s))),
            ("Confirmations", number(head_number - block.number)),
            ("Parent", element("code", block.parent_hash)),
            ("Gas used", number(block.gas_used)),
            ("Base fee", f"{block.base_fee_wei / _GWEI:.9g} gwei"),
            ("Around", _neighbours(block, notation, head_number=head_number)),
        ),
        section("Transactions", transactions_table([(block, item) for item in block.transactions], notation)),
    )


def _neighbours(block: Block, notation: Notation, *, head_number: int) -> Html:
    before = notation.block(block.number - 1) if block.number else None
    after = notation.block(block.number + 1) if block.number < head_number else None
    return fragment(before, " · " if before and after else None, after)


def transaction_body(transaction: Transaction, notation: Notation, *, calls: Node = None) -> Html:
    """Everything about one transaction, what it means first; `calls` is what its payments paid for."""
    outcome = badge("succeeded", tone="good") if transaction.succeeded else badge("reverted", tone="bad")
    fee_wei = transaction.gas_used * transaction.gas_price_wei
    return fragment(
        [_payment_lead(payment, notation) for payment in transaction.payments] or _plain_lead(transaction, notation),
        facts(
            ("Hash", element("code", transaction.hash)),
            ("Outcome", outcome),
            ("Block", fragment(notation.block(transaction.block_number), _confirmations(transaction.confirmations))),
            ("Mined", fragment(utc(transaction.time_s), " · ", notation.age(transaction.time_s))),
            ("From", notation.address(transaction.sender, whole=True)),
            ("To", notation.address(transaction.to, whole=True)),
            ("Created", notation.address(transaction.created, whole=True) if transaction.created else None),
            ("Coins", coins(transaction.value_wei) if transaction.value_wei else None),
            ("Fee", f"{coins(fee_wei)} for {number(transaction.gas_used)} gas"),
            ("Sender's nonce", number(transaction.nonce)),
        ),
        [_payment_section(payment, notation) for payment in transaction.payments],
        calls,
        _events_section(transaction.events, notation),
        _call_section(transaction, notation),
    )


def _confirmations(count: int) -> str:
    return f" · {_count(count, 'confirmation')}"


def _plain_lead(transaction: Transaction, notation: Notation) -> Html:
    does = verb(transaction.to, transaction.data, value_wei=transaction.value_wei)
    tried = does if transaction.succeeded else f"tried what would be said as “{does}”, and was reverted"
    return lead(notation.address(transaction.sender), f" {tried}.")


def _payment_lead(payment: SettleCall, notation: Notation) -> Html:
    payer, payee = notation.address(payment.payer), notation.address(payment.pay_to)
    return lead("A payment of ", opg(payment.amount_atomic), " from ", payer, " to ", payee, ".")


def _payment_section(payment: SettleCall, notation: Notation) -> Html:
    return section(
        "Payment",
        facts(
            ("Taken", opg(payment.amount_atomic)),
            ("Signed for at most", opg(payment.signed_atomic)),
            ("Payer", notation.address(payment.payer, whole=True)),
            ("Payee", notation.address(payment.pay_to, whole=True)),
            ("Scheme", payment.method),
            ("Nonce", element("code", str(payment.nonce))),
            ("Deadline", utc(payment.deadline_s)),
            ("Facilitator", notation.address(payment.facilitator, whole=True) if payment.facilitator else None),
        ),
    )


def _events_section(events: Sequence[Event], notation: Notation) -> Html:
    if not events:
        return section("Events", note("This transaction emitted none."))
    return section("Events", *(_event(event, notation) for event in events))


def _event(event: Event, notation: Notation) -> Html:
    known = _arguments(event.contract, event.arguments, notation)
    if event.name is None:
        known = raw("\n".join([*event.topics, event.data]))
    title = element("h3", event.name or "Unknown event", " ", element("small", "by ", notation.address(event.address)))
    return element("div", title, known, class_="event")


def _call_section(transaction: Transaction, notation: Notation) -> Html | None:
    if not transaction.data:
        return None
    data = unfolds(f"Input data, {number(len(transaction.data))} bytes", raw("0x" + transaction.data.hex()))
    name = contract_name(transaction.to)
    if transaction.function is None or name is None:
        return section("Call", data)
    return section(f"Call of {name}.{transaction.function}", _arguments(name, transaction.arguments, notation), data)


def _arguments(where: str, arguments: dict[str, Any], notation: Notation) -> Html | None:
    if not arguments:
        return None
    return facts(*((name, argument(where, name, value, notation)) for name, value in arguments.items()))


def argument(where: str, name: str, value: Any, notation: Notation) -> Node:
    """One decoded value, written as what its name says it is."""
    match value:
        case dict():
            return _arguments(where, value, notation)
        case str() if value.startswith("0x") and len(value) == 42:
            return notation.address(value, whole=True)
        case int() if name in _TIMES:
            return utc(value)
        case int() if name in _OPG_AMOUNTS:
            return opg(value)
        case bytes() if name == "walrusBlobId":
            return notation.blob(value.decode("ascii", "replace"))
        case bytes():
            text = "0x" + value.hex()
            return element("code", text) if len(value) <= _LONGEST_BYTES else unfolds(f"{len(value)} bytes", raw(text))
        case _:
            return element("code", str(value))


def address_body(
    address: str,
    notation: Notation,
    *,
    balances: tuple[int, int, int],
    is_contract: bool,
    transactions: Sequence[Transaction],
    total: int,
) -> Html:
    """One account; `balances` are OPG, native coins, and what Permit2 may move."""
    opg_atomic, native_wei, allowance_atomic = balances
    label = notation.labels.get(address.lower())
    rows: list[list[Node]] = [
        [
            notation.transaction(transaction.hash),
            verb(transaction.to, transaction.data, value_wei=transaction.value_wei),
            _moved(address, transaction.events),
            notation.address(transaction.sender),
            notation.block(transaction.block_number),
            notation.time(transaction.time_s),
        ]
        for transaction in transactions
    ]
    return fragment(
        facts(
            ("Address", element("code", address)),
            ("Known as", label),
            ("Kind", "contract" if is_contract else "account with a key"),
            ("OPG", opg(opg_atomic)),
            ("Coins for gas", coins(native_wei)),
            ("Permit2 may move", opg(allowance_atomic)),
        ),
        section(
            f"Transactions ({number(total)})",
            table(
                ["Transaction", "Does", "OPG", "By", "Block", "Mined"],
                rows,
                empty="This address has taken part in none.",
            ),
            note(f"The newest {len(rows)} are shown.") if total > len(rows) else None,
        ),
    )


def _moved(address: str, events: Sequence[Event]) -> Node:
    """What one account gained or lost in OPG."""
    change_atomic = 0
    for event in events:
        if event.contract == "OPG" and event.name == "Transfer":
            moved = event.arguments
            change_atomic += moved["value"] * (moved["to"].lower() == address.lower())
            change_atomic -= moved["value"] * (moved["from"].lower() == address.lower())
    if not change_atomic:
        return element("span", "—", class_="muted")
    sign = "+" if change_atomic > 0 else "\N{MINUS SIGN}"
    return element("span", sign, opg(abs(change_atomic)), class_="gain" if change_atomic > 0 else "loss")


def _count(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
