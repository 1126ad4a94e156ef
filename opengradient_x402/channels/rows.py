"""Channels and vouchers as rows of the ledger's tables; each function works in an open transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from opengradient_x402.channels.channel import Channel, Deposit, Voucher

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.ledger.tables import Prepared

_NUMBERS = ("salt", "charged_atomic", "signed_atomic", "balance_atomic", "claimed_atomic", "foreign_atomic")
"""Kept as text: they fit no database integer."""
_DEPOSIT = ("deposit_atomic", "deposit_salt", "deposit_deadline")
_CHANNEL = (*(field.name for field in fields(Channel) if field.name != "deposit"), *_DEPOSIT)
"""The columns that are read of a channel, in this order."""
_VOUCHER = ("authorization_id", "channel_id", "base_atomic", "max_atomic", "charged_atomic", "signed_atomic")
"""The columns that are read of a voucher, in this order."""


def table_of(name: str) -> Any:
    """The table with this name. SQLAlchemy is first imported here."""
    from opengradient_x402.ledger import tables

    return tables.named(name)


def row_of(channel: Channel) -> dict[str, Any]:
    """The columns of a channel."""
    row = {field.name: getattr(channel, field.name) for field in fields(channel) if field.name != "deposit"}
    deposit = channel.deposit
    row |= {name: str(row[name]) for name in _NUMBERS}
    row["deposit_atomic"] = None if deposit is None else str(deposit.amount_atomic)
    row["deposit_salt"] = None if deposit is None else str(deposit.salt)
    row["deposit_deadline"] = None if deposit is None else deposit.deadline
    return row


def _channel_in(row: Sequence[Any]) -> Channel:
    values = dict(zip(_CHANNEL, row, strict=True))
    for name in _NUMBERS:
        values[name] = int(values[name])
    deposit, amount_atomic, salt, deadline = None, *(values.pop(name) for name in _DEPOSIT)
    if salt is not None:
        deposit = Deposit(amount_atomic=int(amount_atomic), salt=int(salt), deadline=deadline)
    return Channel(**values, deposit=deposit)


def channels_in(conn: Connection, *, network: str, payer: str | None) -> list[Channel]:
    """All channels of a network (CAIP-2), or of one payer there, oldest first."""
    statement, values = _statements().channels_of_network, {"network": network}
    if payer is not None:
        statement, values = _statements().channels_of_payer, values | {"payer": payer}
    return [_channel_in(row) for row in statement.rows(conn, values)]


def channel_in(conn: Connection, channel_id: str) -> Channel | None:
    """One channel; None if the ledger does not have it."""
    rows = _statements().channel.rows(conn, {"wanted": channel_id})
    return _channel_in(rows[0]) if rows else None


def known_channel(conn: Connection, channel_id: str) -> Channel:
    """One channel. Raises LookupError if the ledger does not have it."""
    channel = channel_in(conn, channel_id)
    if channel is None:
        raise LookupError(f"channel {channel_id} is not in the ledger")
    return channel


def put_channel(conn: Connection, channel: Channel) -> None:
    """Writes a channel that is there, as it is now."""
    _statements().put_channel.change(conn, row_of(channel) | {"wanted": channel.id})


def vouchers_of(conn: Connection, channel_id: str, *states: str) -> list[Voucher]:
    """The vouchers of a channel in these states, oldest first."""
    of_states = {f"state_{number}": state for number, state in enumerate(states)}
    rows = _vouchers_in(len(states)).rows(conn, of_states | {"wanted": channel_id})
    return [
        Voucher(
            authorization_id=authorization_id,
            channel_id=channel,
            base_atomic=int(base_atomic),
            max_atomic=int(max_atomic),
            charged_atomic=None if charged_atomic is None else int(charged_atomic),
            signed_atomic=int(signed_atomic or 0),
        )
        for authorization_id, channel, base_atomic, max_atomic, charged_atomic, signed_atomic in rows
    ]


def settled_for_good(conn: Connection, channel_id: str) -> int:
    """What was taken for the calls of a channel whose settlement is final, in atomic units."""
    [(gwei, rest)] = _statements().settled_for_good.rows(conn, {"wanted": channel_id})
    return int(gwei or 0) * 10**9 + int(rest or 0)


def has_others(conn: Connection, voucher: Voucher) -> bool:
    """Whether its channel has vouchers of other calls."""
    this = {"channel": voucher.channel_id, "authorization": voucher.authorization_id}
    return _statements().another.value(conn, this) is not None


def put_voucher(conn: Connection, voucher: Voucher) -> Voucher:
    """Writes it, and returns it as it was written: a call keeps the highest sum that was signed for it."""
    voucher = replace(voucher, signed_atomic=voucher.ceiling_atomic)
    row = {name: None if value is None else str(value) for name, value in asdict(voucher).items()}
    if _statements().put_voucher.change(conn, row | {"wanted": voucher.authorization_id}) == 0:
        _statements().add_voucher.change(conn, row | {"state": "newest"})
    return voucher


def own_and_others(
    conn: Connection, channel_id: str, authorization_id: str, *states: str
) -> tuple[Voucher | None, list[Voucher]]:
    """Of the vouchers in these states that of one authorization, and the others, oldest first."""
    vouchers = vouchers_of(conn, channel_id, *states)
    own = next((one for one in vouchers if one.authorization_id == authorization_id), None)
    return own, [one for one in vouchers if one is not own]


def set_state(conn: Connection, authorization_id: str, state: str) -> None:
    """Writes the state of one voucher: `newest`, `included` or `final`."""
    _statements().set_state.change(conn, {"wanted": authorization_id, "now": state})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statements:
    """What a call on a channel executes, built once."""

    channel: Prepared
    channels_of_network: Prepared
    channels_of_payer: Prepared
    put_channel: Prepared
    settled_for_good: Prepared
    another: Prepared
    put_voucher: Prepared
    add_voucher: Prepared
    set_state: Prepared


@cache
def _statements() -> _Statements:
    import sqlalchemy as sa

    from opengradient_x402.ledger.tables import Prepared

    channels, vouchers, paid = table_of("channels"), table_of("vouchers"), table_of("authorizations")
    wanted: Any = sa.bindparam("wanted")
    this = vouchers.c.authorization_id == wanted

    def given(table: Any, *without: str) -> dict[str, Any]:
        return {column.name: sa.bindparam(column.name) for column in table.c if column.name not in without}

    found = sa.select(*(channels.c[name] for name in _CHANNEL))
    of_network = found.where(channels.c.network == sa.bindparam("network")).order_by(channels.c.sequence)
    sums = sa.select(sa.func.sum(paid.c.reserved_gwei), sa.func.sum(paid.c.reserved_rest))
    sums = sums.join_from(vouchers, paid, paid.c.id == vouchers.c.authorization_id)
    another = sa.select(vouchers.c.sequence).where(
        vouchers.c.channel_id == sa.bindparam("channel"), vouchers.c.authorization_id != sa.bindparam("authorization")
    )
    return _Statements(
        channel=Prepared(found.where(channels.c.id == wanted)),
        channels_of_network=Prepared(of_network),
        channels_of_payer=Prepared(of_network.where(channels.c.payer == sa.bindparam("payer"))),
        put_channel=Prepared(channels.update().where(channels.c.id == wanted).values(given(channels, "sequence"))),
        settled_for_good=Prepared(sums.where(vouchers.c.channel_id == wanted, vouchers.c.state == "final")),
        another=Prepared(another.limit(1)),
        put_voucher=Prepared(vouchers.update().where(this).values(given(vouchers, "sequence", "state"))),
        add_voucher=Prepared(vouchers.insert().values(given(vouchers, "sequence"))),
        set_state=Prepared(vouchers.update().where(this).values(state=sa.bindparam("now"))),
    )


@cache
def _vouchers_in(states: int) -> Prepared:
    """The vouchers of a channel that are in one of so many states."""
    import sqlalchemy as sa

    from opengradient_x402.ledger.tables import Prepared

    vouchers = table_of("vouchers")
    is_one_of = vouchers.c.state.in_([sa.bindparam(f"state_{number}") for number in range(states)])
    found = sa.select(*(vouchers.c[name] for name in _VOUCHER))
    return Prepared(
        found.where(vouchers.c.channel_id == sa.bindparam("wanted"), is_one_of).order_by(vouchers.c.sequence)
    )
