"""The environment and `.env`, read once, on request: the only module that looks at either.

What follows from them is worked out when somebody asks for it: a process that was told everything needs no home
directory and no readable `.env`. Does not keep a global, change `os.environ`, or know what the values are used for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.keys.signer import Keystore
from opengradient_x402.settlement_mode import SettlementMode

DEFAULT_NETWORK: Final = "base"
_STATE_NAME: Final = "opengradient"
_LONGEST_SECRET: Final = 4096
_PLATFORMS: Final = {
    "AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda",
    "DYNO": "Heroku",
    "ECS_CONTAINER_METADATA_URI_V4": "Amazon ECS",
    "FLY_MACHINE_ID": "Fly.io",
    "FUNCTIONS_WORKER_RUNTIME": "Azure Functions",
    "K_SERVICE": "Cloud Run",
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
}
"""Variables that these platforms set in every copy of a program."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says. Empty variables count as unset.

    | variable | property |
    |---|---|
    | OG_PRIVATE_KEY, or OG_PRIVATE_KEY_FILE | `private_key`, or a file that holds it |
    | OG_KEYSTORE | `keystore`: path of an encrypted keystore file, in place of a key |
    | OG_KEYSTORE_PASSWORD, or OG_KEYSTORE_PASSWORD_FILE | `keystore_password`, or a file that holds it |
    | OG_NETWORK | `network`: preset name, or path or URL of a network file |
    | OG_RPC_URL | `rpc_url`: the node to read the chain from; several, with commas, are asked in turn |
    | OG_GATEWAY_URL | `gateway_url` |
    | OG_LEDGER_URL | `ledger_url`: SQLAlchemy URL |
    | OG_SETTLEMENT_MODE | `settlement_mode` |

    Key, network and ledger raise ConfigurationError when they are not set and a `.env` that could set them cannot be
    read.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    unread: str | None = None
    """A `.env` (or where one may be) that could not be read, and why."""

    @classmethod
    def load(
        cls, environ: Mapping[str, str] | None = None, *, dotenv: bool = True, dotenv_path: Path | None = None
    ) -> Settings:
        """Read the environment, and under it a `.env` of the working directory or one of its parents.

        The environment wins over the file. Raises ConfigurationError for values that cannot be used, and for a
        `dotenv_path` that cannot be read.
        """
        environ = os.environ if environ is None else environ  # noqa: TID251 - the module that the rule names
        given = {name: _plain(name, value) for name, value in environ.items() if value.strip()}
        unread = None
        try:
            from_file = _dotenv_values(dotenv_path) if dotenv else {}
        except _Unreadable as exc:
            if dotenv_path is not None:
                raise ConfigurationError(f"{exc}. Nothing was paid. Fix or remove the file.") from exc.__cause__
            from_file, unread = {}, str(exc)
            _log.warning("%s. What it may set is not used.", unread)
        from_file = {name: _plain(name, value) for name, value in from_file.items()}
        settings = cls(values={**from_file, **given}, unread=unread)
        # What is set and cannot be used is an error now, and not at the first call.
        _ = settings.settlement_mode, settings.private_key, settings.keystore_password
        return settings

    @cached_property
    def private_key(self) -> SecretStr | None:
        """The key of the wallet that pays."""
        return self._secret("OG_PRIVATE_KEY")

    @cached_property
    def keystore(self) -> Path | None:
        """The encrypted keystore that is used in place of a key."""
        path = self.values.get("OG_KEYSTORE")
        return Path(path) if path else None

    @cached_property
    def keystore_password(self) -> SecretStr | None:
        """What opens the keystore."""
        return self._secret("OG_KEYSTORE_PASSWORD")

    @property
    def network(self) -> str:
        """Whose chain and gateway are used."""
        return self._needed("OG_NETWORK") or DEFAULT_NETWORK

    @cached_property
    def rpc_url(self) -> SecretStr | None:
        """The node that reads the chain, in place of the network's."""
        url = self.values.get("OG_RPC_URL")
        return SecretStr(url) if url else None

    @property
    def gateway_url(self) -> str | None:
        """The gateway to call, in place of the network's."""
        return self.values.get("OG_GATEWAY_URL") or None

    @property
    def ledger_url(self) -> str:
        """Where authorizations and receipts are kept; a file in the state directory when nothing is set."""
        return self._needed("OG_LEDGER_URL") or f"sqlite:///{self.state_directory / 'ledger.sqlite'}"

    @cached_property
    def settlement_mode(self) -> SettlementMode:
        """What goes on chain about the data of a call."""
        return SettlementMode.parse(self.values.get("OG_SETTLEMENT_MODE") or SettlementMode.BATCH)

    @property
    def state_directory(self) -> Path:
        """Where this user's ledgers and devnet files are."""
        return state_directory(self.values)

    @property
    def key(self) -> SecretStr | Keystore | None:
        """What pays: the private key, or the keystore, which is not opened here.

        Raises ConfigurationError when both are set: they may be two wallets.
        """
        if self.keystore is None:
            if self.private_key is None:
                self._needed("OG_PRIVATE_KEY")
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

    def _needed(self, name: str) -> str | None:
        """The variable. Raises ConfigurationError when it may be set in a file that cannot be read."""
        value = self.values.get(name)
        if value is None and self.unread is not None:
            raise ConfigurationError(
                f"{self.unread}, and {name} is not set elsewhere: it may be set there. Nothing was paid. "
                f"Correct the permissions, remove the file, or set {name} in the environment."
            )
        return value

    def _secret(self, name: str) -> SecretStr | None:
        """The variable, or the content of the file that `<name>_FILE` names (as containers mount secrets)."""
        if value := self.values.get(name):
            return SecretStr(value)
        if not (path := self.values.get(f"{name}_FILE")):
            return None
        try:
            with Path(path).expanduser().open(encoding="utf-8-sig") as file:
                secret = _plain(name, file.read(_LONGEST_SECRET).rstrip("\r\n"))
        except (OSError, UnicodeDecodeError, RuntimeError) as exc:  # RuntimeError: `~` without a home directory
            raise ConfigurationError(
                f"{name}_FILE names {path}, which cannot be read ({type(exc).__name__}). Nothing was paid. "
                "Correct the path, or the file's permissions."
            ) from exc
        if not secret:
            raise ConfigurationError(f"{name}_FILE names {path}, which is empty. Nothing was paid. Fill the file.")
        return SecretStr(secret)


def _plain(name: str, value: str) -> str:
    """Blanks around a value come from files and shells, and mean nothing; in a password they do."""
    return value if name == "OG_KEYSTORE_PASSWORD" else value.strip()


def state_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where ledgers and devnet files of this user live (XDG Base Directory): not created here.

    Raises ConfigurationError for a user without a home directory, as in a container whose user id has no entry.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251 - the module that the rule names
    try:
        return _xdg_directory(environ, "XDG_STATE_HOME", ".local/state")
    except RuntimeError as exc:
        raise ConfigurationError(
            f"There is no place for {_STATE_NAME}'s files: HOME is not set, and this user has no home directory. "
            "Nothing was paid. Set OG_LEDGER_URL to where the ledger is, or XDG_STATE_HOME (or HOME) to a directory "
            "that lasts."
        ) from exc


def cache_directory() -> Path | None:
    """Where this user's programs keep what may be deleted at any time (XDG Base Directory); None without a home."""
    try:
        return _xdg_directory(os.environ, "XDG_CACHE_HOME", ".cache")  # noqa: TID251 - the module that the rule names
    except RuntimeError:
        return None


def _xdg_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """Raises RuntimeError for a user without a home directory."""
    base = Path(environ.get(variable, ""))
    # XDG: relative paths are invalid and must be ignored.
    return (base if base.is_absolute() else Path.home() / below_home) / _STATE_NAME


def platform_of_many() -> str | None:
    """The platform that this process runs on, if it is one that runs several copies of a program."""
    environ = os.environ  # noqa: TID251 - the module that the rule names
    return next((f"{name} ({variable} is set)" for variable, name in _PLATFORMS.items() if environ.get(variable)), None)


def find_dotenv() -> Path | None:
    """The nearest `.env` in the working directory or its parents. Raises OSError where that cannot be seen."""
    directory = Path.cwd().resolve()
    for candidate in (directory, *directory.parents):
        if (path := candidate / ".env").is_file():
            return path
    return None


class _Unreadable(Exception):
    """A `.env` cannot be read, or not be looked for: the text names it and the reason."""


def _dotenv_values(path: Path | None) -> dict[str, str]:
    try:
        path = find_dotenv() if path is None else path
    except FileNotFoundError:  # the working directory is gone, and with it what was in it
        return {}
    except OSError as exc:
        raise _Unreadable(
            f"{exc.filename or 'The working directory'} cannot be looked for ({type(exc).__name__})"
        ) from exc
    if path is None:
        return {}
    from dotenv import dotenv_values

    try:
        # Without interpolation: a `$` in a value is a `$`, and no other variable leaks into it.
        values = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as exc:
        raise _Unreadable(f"{path} cannot be read ({type(exc).__name__})") from exc
    return {name: value for name, value in values.items() if value}
