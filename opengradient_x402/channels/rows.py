"""Channels and vouchers as rows of the ledger's tables; each function works in an open transaction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from opengradient_x402.channels.channel import Channel, Deposit, Voucher

if TYPE_CHECKING:
    from sqlalchemy import Connection

_NUMBERS = ("salt", "charged_atomic", "signed_atomic", "balance_atomic", "claimed_atomic", "foreign_atomic")
"""Kept as text: they fit no database integer."""


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


def _channel_in(row: Any) -> Channel:
    values = {field.name: row[field.name] for field in fields(Channel) if field.name != "deposit"}
    values |= {name: int(values[name]) for name in _NUMBERS}
    deposit = None
    if row["deposit_salt"] is not None:
        deposit = Deposit(
            amount_atomic=int(row["deposit_atomic"]), salt=int(row["deposit_salt"]), deadline=row["deposit_deadline"]
        )
    return Channel(**values, deposit=deposit)


def channels_in(conn: Connection, *, network: str, payer: str | None) -> list[Channel]:
    """All channels of a network (CAIP-2), or of one payer there, oldest first."""
    query, values = _statements().channels_of_network, {"network": network}
    if payer is not None:
        query, values = _statements().channels_of_payer, values | {"payer": payer}
    return [_channel_in(row) for row in conn.execute(query, values).mappings()]


def channel_in(conn: Connection, channel_id: str) -> Channel | None:
    """One channel; None if the ledger does not have it."""
    row = conn.execute(_statements().channel, {"wanted": channel_id}).mappings().one_or_none()
    return None if row is None else _channel_in(row)


def known_channel(conn: Connection, channel_id: str) -> Channel:
    """One channel. Raises LookupError if the ledger does not have it."""
    channel = channel_in(conn, channel_id)
    if channel is None:
        raise LookupError(f"channel {channel_id} is not in the ledger")
    return channel


def put_channel(conn: Connection, channel: Channel) -> None:
    """Writes a channel that is there, as it is now."""
    conn.execute(_statements().put_channel, row_of(channel) | {"wanted": channel.id})


def vouchers_of(conn: Connection, channel_id: str, *states: str) -> list[Voucher]:
    """The vouchers of a channel in these states, oldest first."""
    return [
        Voucher(
            authorization_id=row.authorization_id,
            channel_id=row.channel_id,
            base_atomic=int(row.base_atomic),
            max_atomic=int(row.max_atomic),
            charged_atomic=None if row.charged_atomic is None else int(row.charged_atomic),
            signed_atomic=int(row.signed_atomic or 0),
        )
        for row in conn.execute(_statements().vouchers, {"wanted": channel_id, "states": states})
    ]


def settled_for_good(conn: Connection, channel_id: str) -> int:
    """What was taken for the calls of a channel whose settlement is final, in atomic units."""
    gwei, rest = conn.execute(_statements().settled_for_good, {"wanted": channel_id}).one()
    return int(gwei or 0) * 10**9 + int(rest or 0)


def has_others(conn: Connection, voucher: Voucher) -> bool:
    """Whether its channel has vouchers of other calls."""
    table = table_of("vouchers")
    other = (table.c.channel_id == voucher.channel_id, table.c.authorization_id != voucher.authorization_id)
    return conn.execute(table.select().where(*other).limit(1)).first() is not None


def put_voucher(conn: Connection, voucher: Voucher) -> Voucher:
    """Writes it, and returns it as it was written: a call keeps the highest sum that was signed for it."""
    voucher = replace(voucher, signed_atomic=voucher.ceiling_atomic)
    row = {name: None if value is None else str(value) for name, value in asdict(voucher).items()}
    if conn.execute(_statements().put_voucher, row | {"wanted": voucher.authorization_id}).rowcount == 0:
        conn.execute(_statements().add_voucher, row | {"state": "newest"})
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
    conn.execute(_statements().set_state, {"wanted": authorization_id, "now": state})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statements:
    """What a call on a channel executes, built once: SQLAlchemy takes longer to build one than SQLite to run it."""

    channel: Any
    channels_of_network: Any
    channels_of_payer: Any
    put_channel: Any
    vouchers: Any
    settled_for_good: Any
    put_voucher: Any
    add_voucher: Any
    set_state: Any


@cache
def _statements() -> _Statements:
    import sqlalchemy as sa

    channels, vouchers, paid = table_of("channels"), table_of("vouchers"), table_of("authorizations")
    wanted: Any = sa.bindparam("wanted")
    this = vouchers.c.authorization_id == wanted

    def given(table: Any, *without: str) -> dict[str, Any]:
        return {column.name: sa.bindparam(column.name) for column in table.c if column.name not in without}

    of_network = channels.select().where(channels.c.network == sa.bindparam("network")).order_by(channels.c.sequence)
    is_one_of = vouchers.c.state.in_(sa.bindparam("states", expanding=True))
    sums = sa.select(sa.func.sum(paid.c.reserved_gwei), sa.func.sum(paid.c.reserved_rest))
    sums = sums.join_from(vouchers, paid, paid.c.id == vouchers.c.authorization_id)
    return _Statements(
        channel=channels.select().where(channels.c.id == wanted),
        channels_of_network=of_network,
        channels_of_payer=of_network.where(channels.c.payer == sa.bindparam("payer")),
        put_channel=channels.update().where(channels.c.id == wanted).values(given(channels, "sequence")),
        vouchers=vouchers.select().where(vouchers.c.channel_id == wanted, is_one_of).order_by(vouchers.c.sequence),
        settled_for_good=sums.where(vouchers.c.channel_id == wanted, vouchers.c.state == "final"),
        put_voucher=vouchers.update().where(this).values(given(vouchers, "sequence", "state")),
        add_voucher=vouchers.insert().values(given(vouchers, "sequence")),
        set_state=vouchers.update().where(this).values(state=sa.bindparam("now")),
    )
