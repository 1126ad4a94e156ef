"""The API keys of a server: each has a name, a token that its tool sends, and a limit of its own if one is set.

All of them pay from one wallet. What the wallet may spend at all is `payment.policy`.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.run_limit import RunLimit

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_TOKEN: Final = re.compile(r"sk-og-[A-Za-z0-9_-]{32,}", re.ASCII)
_TOKEN_BYTES: Final = 24
ONLY_KEY: Final = "default"
"""The name of the key of a server without budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One tool that may spend the wallet's money."""

    name: str
    token: str = field(default_factory=lambda: f"sk-og-{secrets.token_urlsafe(_TOKEN_BYTES)}", repr=False)
    limit: RunLimit | None = None
    since: int | None = None
    """When it was made (Unix time, seconds), if a file keeps it: its limit is for all that it has cost since."""

    @property
    def limits(self) -> tuple[RunLimit, ...]:
        """Its limit, as calls take it."""
        return () if self.limit is None else (self.limit,)


def keys_of(budgets: Sequence[str]) -> tuple[ApiKey, ...]:
    """A key for each `NAME=AMOUNT` (whole tokens); without any, one key that only the wallet's policy limits.

    Raises ConfigurationError.
    """
    keys: dict[str, ApiKey] = {}
    for budget in budgets:
        name, _, amount = budget.partition("=")
        if _NAME.fullmatch(name) is None or not amount:
            raise _refused(f"The budget {budget!r} is not NAME=AMOUNT, such as editor=0.5 (at most 32 letters a name)")
        if name in keys:
            raise _refused(f"Two budgets are named {name!r}")
        try:
            limit = RunLimit(
                amount,
                subject=f"The key {name!r}",
                remedy=f"Lower `max_tokens`, or start the server with a larger `--budget {name}=…`.",
            )
        except ConfigurationError as exc:
            raise ConfigurationError(f"--budget {budget!r}: {exc}") from exc
        keys[name] = ApiKey(name=name, limit=limit)
    return tuple(keys.values()) or (ApiKey(name=ONLY_KEY),)


def kept(keys: Sequence[ApiKey], file: Path) -> tuple[ApiKey, ...]:
    """The keys with the tokens and times that `file` has for their names; those that it does not have are added to it.

    The file is made for its owner alone. Raises ConfigurationError when it cannot be used, or others may read it.
    """
    try:
        entries, now = _entries_in(file), int(time.time())
        new = {key.name: {"token": key.token, "since": now} for key in keys if key.name not in entries}
        if new:
            _write(file, {**entries, **new})
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            f"The keys in {file} cannot be used: {exc}. Nothing was paid. Name another file, or delete this one: then "
            "new keys are made."
        ) from exc
    return tuple(replace(key, **(entries | new)[key.name]) for key in keys)


def count_earlier(keys: Sequence[ApiKey], ledger: Ledger, *, payer: str) -> None:
    """Counts what kept keys have cost `payer` at earlier starts of the server: their calls in the ledger."""
    counted = {key.name: (key.limit, key.since) for key in keys if key.limit is not None and key.since is not None}
    if not counted:
        return
    for receipts in ledger.pages_of_receipts(since=min(since for _, since in counted.values()), payer=payer):
        for receipt in receipts:
            limit, since = counted.get(receipt.run or "", (None, 0))
            if limit is not None and receipt.created_at >= since:
                limit.count(receipt)


def _entries_in(file: Path) -> dict[str, dict[str, Any]]:
    """Tokens and times by name; none when there is no file. Raises OSError and ValueError."""
    if not file.exists():
        return {}
    if os.name == "posix" and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ValueError(f"other users may read them (`chmod 600 {file}` forbids it)")
    entries = strict_json.loads(file.read_bytes())
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise ValueError("it is no JSON object of names, each with a `token` like sk-og-… and a time `since`")
    return entries


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"token", "since"}
        and isinstance(value["token"], str)
        and _TOKEN.fullmatch(value["token"]) is not None
        and type(value["since"]) is int
    )


def _write(file: Path, entries: Mapping[str, Any]) -> None:
    """Writes aside and moves: a server that is killed leaves the old file or the new one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
            json.dump(entries, written, indent=2)
        aside.replace(file)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


def key_with(token: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key that has this token; the time that this takes says nothing about the tokens."""
    given, found = token.encode("utf-8", "surrogateescape"), None
    for key in keys:
        if hmac.compare_digest(key.token.encode(), given):
            found = key
    return found


def _refused(what: str) -> ConfigurationError:
    return ConfigurationError(f"{what}. Nothing was paid. Give each key once, as `--budget NAME=AMOUNT`.")
