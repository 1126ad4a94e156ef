"""The environment and `.env`, read once, on request: the only module that looks at either.

Does not keep a global, change `os.environ`, or know what the values are used for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.settlement_mode import SettlementMode

DEFAULT_NETWORK: Final = "base"
_STATE_NAME: Final = "opengradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says. Empty variables count as unset.

    | variable | field |
    |---|---|
    | OG_PRIVATE_KEY | `private_key` |
    | OG_NETWORK | `network`: preset name, or path or URL of a network file |
    | OG_GATEWAY_URL | `gateway_url` |
    | OG_LEDGER_URL | `ledger_url`: SQLAlchemy URL |
    | OG_SETTLEMENT_MODE | `settlement_mode` |
    """

    private_key: SecretStr | None = None
    network: str = DEFAULT_NETWORK
    gateway_url: str | None = None
    ledger_url: str = ""
    settlement_mode: SettlementMode = SettlementMode.BATCH
    state_directory: Path = Path()

    @classmethod
    def load(
        cls, environ: Mapping[str, str] | None = None, *, dotenv: bool = True, dotenv_path: Path | None = None
    ) -> Settings:
        """Read the environment, and under it a `.env` of the working directory or one of its parents.

        The environment wins over the file. Raises ConfigurationError for values that cannot be used.
        """
        environ = os.environ if environ is None else environ  # noqa: TID251 - the module that the rule names
        values = {
            **(_dotenv_values(dotenv_path) if dotenv else {}),
            **{k: v for k, v in environ.items() if v},
        }
        state = state_directory(values)
        private_key = values.get("OG_PRIVATE_KEY")
        return cls(
            private_key=SecretStr(private_key) if private_key else None,
            network=values.get("OG_NETWORK") or DEFAULT_NETWORK,
            gateway_url=values.get("OG_GATEWAY_URL") or None,
            ledger_url=values.get("OG_LEDGER_URL") or f"sqlite:///{state / 'ledger.sqlite'}",
            settlement_mode=SettlementMode.parse(values.get("OG_SETTLEMENT_MODE") or SettlementMode.BATCH),
            state_directory=state,
        )

    def require_private_key(self) -> SecretStr:
        """The key, for those who cannot do without. Raises InvalidPrivateKey when none is set."""
        if self.private_key is None:
            raise InvalidPrivateKey(
                "There is no private key to pay with. Nothing was paid. Set OG_PRIVATE_KEY (in the environment "
                "or in .env), or pass `private_key`. A devnet hands out funded keys: `opengradient-devnet`."
            )
        return self.private_key


def state_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where ledgers and devnet files of this user live (XDG Base Directory): not created here."""
    environ = os.environ if environ is None else environ  # noqa: TID251 - the module that the rule names
    base = environ.get("XDG_STATE_HOME", "")
    # XDG: relative paths are invalid and must be ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / _STATE_NAME


def find_dotenv(start: Path | None = None) -> Path | None:
    """The nearest `.env` in a directory or its parents."""
    directory = (Path.cwd() if start is None else start).resolve()
    for candidate in (directory, *directory.parents):
        if (path := candidate / ".env").is_file():
            return path
    return None


def _dotenv_values(path: Path | None) -> dict[str, str]:
    path = find_dotenv() if path is None else path
    if path is None:
        return {}
    from dotenv import dotenv_values

    try:
        # Without interpolation: a `$` in a value is a `$`, and no other variable leaks into it.
        values = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(
            f"{path} cannot be read ({type(exc).__name__}). Nothing was paid. Fix or remove the file."
        ) from exc
    return {name: value for name, value in values.items() if value}
