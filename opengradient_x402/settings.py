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
from opengradient_x402.signer import Keystore

DEFAULT_NETWORK: Final = "base"
_STATE_NAME: Final = "opengradient"
_LONGEST_SECRET: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says. Empty variables count as unset.

    | variable | field |
    |---|---|
    | OG_PRIVATE_KEY, or OG_PRIVATE_KEY_FILE | `private_key`, or a file that holds it |
    | OG_KEYSTORE | `keystore`: path of an encrypted keystore file, in place of a key |
    | OG_KEYSTORE_PASSWORD, or OG_KEYSTORE_PASSWORD_FILE | `keystore_password`, or a file that holds it |
    | OG_NETWORK | `network`: preset name, or path or URL of a network file |
    | OG_RPC_URL | `rpc_url`: the node to read the chain from; several, with commas, are asked in turn |
    | OG_GATEWAY_URL | `gateway_url` |
    | OG_LEDGER_URL | `ledger_url`: SQLAlchemy URL |
    | OG_SETTLEMENT_MODE | `settlement_mode` |
    """

    private_key: SecretStr | None = None
    keystore: Path | None = None
    keystore_password: SecretStr | None = None
    network: str = DEFAULT_NETWORK
    rpc_url: SecretStr | None = None
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
        keystore = values.get("OG_KEYSTORE")
        return cls(
            private_key=_secret(values, "OG_PRIVATE_KEY"),
            keystore=Path(keystore) if keystore else None,
            keystore_password=_secret(values, "OG_KEYSTORE_PASSWORD"),
            network=values.get("OG_NETWORK") or DEFAULT_NETWORK,
            rpc_url=SecretStr(values["OG_RPC_URL"]) if values.get("OG_RPC_URL") else None,
            gateway_url=values.get("OG_GATEWAY_URL") or None,
            ledger_url=values.get("OG_LEDGER_URL") or f"sqlite:///{state / 'ledger.sqlite'}",
            settlement_mode=SettlementMode.parse(values.get("OG_SETTLEMENT_MODE") or SettlementMode.BATCH),
            state_directory=state,
        )

    @property
    def key(self) -> SecretStr | Keystore | None:
        """What pays: the private key, or the keystore, which is not opened here.

        Raises ConfigurationError when both are set: they may be two wallets.
        """
        if self.keystore is None:
            return self.private_key
        if self.private_key is not None:
            raise ConfigurationError(
                "OG_PRIVATE_KEY and OG_KEYSTORE are both set, and may be two wallets. Nothing was paid. Unset one."
            )
        return Keystore(self.keystore, self.keystore_password)

    def require_key(self) -> SecretStr | Keystore:
        """As `key`, for those who cannot do without. Raises InvalidPrivateKey when none is set."""
        if (key := self.key) is None:
            raise InvalidPrivateKey(
                "There is no private key to pay with. Nothing was paid. Set OG_PRIVATE_KEY (in the environment "
                "or in .env), or pass `private_key`. A devnet hands out funded keys: `opengradient-devnet`."
            )
        return key


def _secret(values: Mapping[str, str], name: str) -> SecretStr | None:
    """The variable, or the content of the file that `<name>_FILE` names (as containers mount secrets)."""
    if value := values.get(name):
        return SecretStr(value)
    if not (path := values.get(f"{name}_FILE")):
        return None
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            return SecretStr(file.read(_LONGEST_SECRET).strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(
            f"{name}_FILE names {path}, which cannot be read ({type(exc).__name__}). Nothing was paid. "
            "Correct the path, or the file's permissions."
        ) from exc


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
