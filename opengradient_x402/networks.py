"""Where money moves: the chain, the token, the contracts and the allow-listed counterparties of a network.

Presets by chain and token, and files or URLs that describe other networks (a devnet writes one). Does not know the
environment, keys, or what is happening on the chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

from pydantic import SecretStr

from opengradient_x402 import strict_json
from opengradient_x402.addresses import checksum_address, is_in_one_case
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint, UnknownNetwork
from opengradient_x402.models import quoted_price
from opengradient_x402.money import Asset
from opengradient_x402.settings import state_directory
from opengradient_x402.urls import keep_out_of_logs, without_secrets

PERMIT2: Final = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
"""Uniswap Permit2, one address on every chain (github.com/Uniswap/permit2)."""
UPTO_PROXY: Final = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"
"""The spender of the x402 `upto` scheme on EVM (x402 v2, scheme_upto_evm)."""
EXACT_PROXY: Final = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"
"""The spender of the x402 `exact` scheme with Permit2 (x402 v2, scheme_exact_evm)."""
GATEWAY_PAYEE: Final = "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"
"""The default payTo of the OpenGradient gateways (docs/wire.md, "Networks")."""
GATEWAY_URL: Final = "https://llm.opengradient.ai"
"""The public gateway (OpenGradient SDK default; later SDKs ask the registry instead)."""

AWS_NITRO_ROOT_SHA256: Final = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
"""Fingerprint of the root G1 (AWS Nitro Enclaves, "Verifying the root of trust")."""

_PRIVATE_CHAIN_IDS: Final = frozenset({1337, 31337, 31402})
"""Ganache, anvil and hardhat, and this project's devnet: one node makes all the blocks, and none goes away."""
_FINGERPRINT: Final = re.compile("[0-9a-fA-F]{64}", re.ASCII)
_HEADER: Final = re.compile(r"x-(?!payment|upto-|settlement-)[a-z0-9-]{1,60}", re.ASCII)
_MAX_DESCRIPTION_BYTES: Final = 256 * 1024
_FETCH_TIMEOUT_S: Final = 5.0


def _spelled(address: str) -> str:
    return checksum_address(address) if is_in_one_case(address) else address


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainContract:
    """A contract on a chain other than the one that payments are made on."""

    address: str
    rpc_url: str = field(repr=False)
    chain_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Everything a client must know to pay on one chain. Addresses are EIP-55.

    `payees` and `facilitators` are allow-lists. Empty `facilitators` means that none is published: the first
    one seen is pinned, and a different one later is refused.
    """

    name: str
    chain_id: int
    rpc_url: str = field(repr=False)  # a provider's key often stands in its path
    """A node of the chain; or several, with commas between them, which are asked in turn."""
    gateway_url: str
    """Where calls go that name no gateway; empty where the user must name one."""
    asset: Asset
    permit2: str = PERMIT2
    upto_proxy: str = UPTO_PROXY
    exact_proxy: str = EXACT_PROXY
    payees: frozenset[str] = frozenset()
    facilitators: frozenset[str] = frozenset()
    registry: ChainContract | None = None
    relay: ChainContract | None = None
    blob_url: str | None = None
    explorer_url: str | None = None
    faucet_url: str | None = None
    accounts_url: str | None = None
    asset_usd: str | None = None
    """The price of one token in USD, for estimates of costs that a gateway does not quote; decimal text."""
    attestation_root_sha256: str = AWS_NITRO_ROOT_SHA256
    """SHA-256 of the root certificate that must stand above an enclave's attestation document (64 hex digits)."""
    session_idle_s: float = 60
    confirmations: int = 3
    """So many blocks, its own included, make a settlement final."""
    call_id_header: str | None = None
    """The request header in which its gateways ask for the id of the call (`x-...`); None sends them no id."""
    given_as: str | None = field(default=None, compare=False, repr=False)
    """What `--network` takes for it: a name, a path or a URL; None for one that was made in Python."""
    web3: object | None = field(default=None, repr=False)
    """A user's `Web3` or `AsyncWeb3`, which answers in place of `rpc_url`."""

    def __post_init__(self) -> None:
        # Presets are written with checksums; computing them again would load a hash at every start.
        for name in ("permit2", "upto_proxy", "exact_proxy"):
            object.__setattr__(self, name, _spelled(getattr(self, name)))
        for name in ("payees", "facilitators"):
            object.__setattr__(self, name, frozenset(map(_spelled, getattr(self, name))))
        for name in ("asset", "registry", "relay"):
            contract = getattr(self, name)
            if contract is not None and (address := _spelled(contract.address)) != contract.address:
                object.__setattr__(self, name, replace(contract, address=address))

    @property
    def caip2(self) -> str:
        """The chain in CAIP-2 form, as x402 writes it: `eip155:8453`."""
        return f"eip155:{self.chain_id}"

    @property
    def may_set_its_clock(self) -> bool:
        """Whether its time can be moved on, as on a chain for development; others keep the world's time."""
        return self.chain_id in _PRIVATE_CHAIN_IDS

    def gateway_at(self, chosen: str | None) -> str:
        """The gateway that the user chose, or the network's own. Raises ConfigurationError where there is neither."""
        if url := chosen or self.gateway_url:
            return url
        raise ConfigurationError(
            f"The network {self.name} has no gateway of its own. Nothing was paid. Name one as `base_url` "
            "(OG_GATEWAY_URL, --gateway), and who may be paid there in `SpendPolicy(payees=...)`."
        )


_REGISTRY: Final = ChainContract(
    address="0x703cB174AEadB35D611858369B4b1111dC9Abda6",  # TEE registry (docs/wire.md, "Networks")
    rpc_url="https://ogevmdevnet.opengradient.ai",  # OpenGradient EVM (docs/wire.md, "Networks")
    chain_id=10740,
)

_BLOB_URL: Final = "https://aggregator.suicore.com/v1/blobs"
"""Public code of OpenGradient's explorer (docs/wire.md, "Data settlement"). What it returns is checked by its hash."""

_BASE: Final = Network(
    name="base",
    given_as="base",
    chain_id=8453,
    rpc_url="https://mainnet.base.org",  # docs.base.org, public endpoint
    gateway_url=GATEWAY_URL,
    asset=Asset(
        address="0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",  # OPG, live since 2026-04-15
        symbol="OPG",
        decimals=18,
        name="OpenGradient",
        version="1",
    ),
    payees=frozenset({GATEWAY_PAYEE}),
    registry=_REGISTRY,
    blob_url=_BLOB_URL,
    explorer_url="https://basescan.org",
)
_BASE_SEPOLIA: Final = Network(
    name="base-sepolia",
    given_as="base-sepolia",
    chain_id=84532,
    rpc_url="https://sepolia.base.org",  # docs.base.org, public endpoint
    gateway_url=GATEWAY_URL,
    asset=Asset(
        address="0x240b09731D96979f50B2C649C9CE10FcF9C7987F",  # OPG before mainnet
        symbol="OPG",
        decimals=18,
        name="OPG",
        version="2",
    ),
    payees=frozenset({GATEWAY_PAYEE}),
    registry=_REGISTRY,
    blob_url=_BLOB_URL,
    explorer_url="https://sepolia.basescan.org",
    faucet_url="https://faucet.opengradient.ai/",
)


def _in_usdc(network: Network, *, address: str, domain_name: str, faucet_url: str | None = None) -> Network:
    """The chain of `network`, paid in USDC at gateways that the user names, with payees of the user's policy."""
    name = f"{network.name}-usdc"
    return replace(
        network,
        name=name,
        given_as=name,
        asset=Asset(address=address, symbol="USDC", decimals=6, name=domain_name, version="2"),
        asset_usd="1",
        gateway_url="",
        payees=frozenset(),
        registry=None,
        faucet_url=faucet_url,
    )


PRESETS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        _BASE,
        _BASE_SEPOLIA,
        # Circle's addresses; name and version are what the tokens answer (EIP-712 domain)
        _in_usdc(_BASE, address="0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", domain_name="USD Coin"),
        _in_usdc(
            _BASE_SEPOLIA,
            address="0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            domain_name="USDC",
            faucet_url="https://faucet.circle.com/",
        ),
    )
}


@runtime_checkable
class DescribedNetwork(Protocol):
    """A network that runs and says where its description is, such as a `Devnet`."""

    @property
    def network_url(self) -> str:
        """Where the network's description (JSON) is served."""


def load_network(source: str | Path | Network | DescribedNetwork, *, devnet_file: Path | None = None) -> Network:
    """A Network from a preset's name, a path or URL of a network file, a running `Devnet`, or a Network itself.

    `"devnet"` reads `devnet_file`, which `Settings` places in the state directory of the user.
    Raises UnknownNetwork, or InsecureEndpoint for a plain-http URL off loopback.
    """
    if isinstance(source, Network):
        return source
    if isinstance(source, DescribedNetwork):
        return load_network(source.network_url)
    if isinstance(source, str):
        if (preset := PRESETS.get(source)) is not None:
            return preset
        if source == "devnet":
            return replace(_read_file(devnet_file or default_devnet_file(), is_devnet=True), given_as=source)
        if "://" in source:
            shown = None if {"@", "?"} & set(source) else source  # a password or a token may be in it
            return replace(_parse(_fetch(source), origin=without_secrets(source)), given_as=shown)
        if not _looks_like_path(source):
            raise UnknownNetwork(
                f"Unknown network {source!r}. Nothing was paid. Known: {', '.join(PRESETS)}, devnet; or give "
                "the path or URL of a network file. A local network starts with `opengradient-devnet`."
            )
    return replace(_read_file(Path(source), is_devnet=False), given_as=str(source))


def with_node(network: Network, *, rpc_url: str | SecretStr | None = None, web3: object | None = None) -> Network:
    """The network, read through the user's own node: a URL (or several, with commas), or a Web3 object.

    Raises ConfigurationError for a URL that is not http(s).
    """
    if web3 is not None:
        return replace(network, web3=web3)
    if rpc_url is None:
        return network
    text = rpc_url.get_secret_value() if isinstance(rpc_url, SecretStr) else rpc_url
    for url in text.split(","):
        scheme = url.strip().partition("://")[0].lower()
        if scheme not in ("http", "https"):
            advice = "Pass a connected Web3 or AsyncWeb3 as `web3=`." if scheme in ("ws", "wss") else "Correct it."
            raise ConfigurationError(
                "`rpc_url` (OG_RPC_URL, --rpc-url) must be an http(s) URL, or several with commas between them. "
                f"Nothing was paid. {advice}"
            )
    return replace(network, rpc_url=text, web3=None)


def default_devnet_file() -> Path:
    """Where `opengradient-devnet` writes its network file for this user."""
    return state_directory() / "devnet.json"


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host is this machine. Names other than `localhost` are not resolved."""
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _looks_like_path(source: str) -> bool:
    return source.endswith(".json") or "/" in source or "\\" in source or Path(source).is_file()


def _read_file(path: Path, *, is_devnet: bool) -> Network:
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(_MAX_DESCRIPTION_BYTES + 1)
    except (OSError, RuntimeError) as exc:  # RuntimeError: `~` without a home directory
        hint = (
            "Start a devnet with `opengradient-devnet` (it writes this file), or choose another network."
            if is_devnet
            else f"Give the path of an existing network file, or one of {', '.join(PRESETS)}, devnet."
        )
        reason = getattr(exc, "strerror", None) or exc
        raise UnknownNetwork(f"The network file {path} cannot be read ({reason}). Nothing was paid. {hint}") from exc
    return _parse(content, origin=str(path))


def _fetch(url: str) -> bytes:
    import httpx

    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise InsecureEndpoint(
            f"The network description at {parts.scheme}://{parts.hostname} was not read: somebody in "
            "between could name other payees. Nothing was paid. Use https (plain http is fine on loopback)."
        )
    keep_out_of_logs(url)
    shown = without_secrets(url)
    try:
        # Without TLS there is nothing to verify, and loading the system's certificates takes 35 ms.
        is_secure = parts.scheme == "https"
        with httpx.stream("GET", url, timeout=_FETCH_TIMEOUT_S, follow_redirects=False, verify=is_secure) as response:
            if response.status_code != httpx.codes.OK:
                raise UnknownNetwork(
                    f"{shown} answered {response.status_code} instead of a network description. "
                    "Nothing was paid. Check the URL."
                )
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_DESCRIPTION_BYTES:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
        raise UnknownNetwork(
            f"No network description could be read from {shown} ({type(exc).__name__}). Nothing was paid. "
            "Is the devnet running?"
        ) from exc
    return bytes(content)


def _parse(content: bytes, *, origin: str) -> Network:
    try:
        return _network(_document(content))
    except KeyError as exc:
        raise _unreadable(origin, f"the key {exc.args[0]!r} is missing") from exc
    except (ValueError, TypeError) as exc:
        raise _unreadable(origin, str(exc)) from exc


def _document(content: bytes) -> dict[str, Any]:
    if len(content) > _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"more than {_MAX_DESCRIPTION_BYTES} bytes")
    document = strict_json.loads(content)
    if not isinstance(document, dict):
        raise TypeError("not a JSON object")
    return document


def _unreadable(origin: str, problem: str) -> UnknownNetwork:
    return UnknownNetwork(
        f"{origin} is not a network description: {problem}. Nothing was paid. "
        "Write it again with `opengradient-devnet --network-file`."
    )


def _network(document: Mapping[str, Any]) -> Network:
    chain_id = _integer(document, "chain_id")
    if document.get("network", f"eip155:{chain_id}") != f"eip155:{chain_id}":
        raise ValueError(f"network {document['network']!r} is not chain id {chain_id}")
    asset = document["asset"]
    usual = 1 if chain_id in _PRIVATE_CHAIN_IDS else 3
    return Network(
        name=_text(document, "name"),
        chain_id=chain_id,
        rpc_url=_text(document, "rpc_url"),
        gateway_url=_text(document, "gateway_url"),
        asset=Asset(
            address=checksum_address(_text(asset, "address")),
            symbol=_text(asset, "symbol"),
            decimals=_integer(asset, "decimals"),
            name=_text(asset, "name"),
            version=_text(asset, "version"),
        ),
        permit2=checksum_address(document.get("permit2", PERMIT2)),
        upto_proxy=checksum_address(document.get("upto_proxy", UPTO_PROXY)),
        exact_proxy=checksum_address(document.get("exact_proxy", EXACT_PROXY)),
        payees=frozenset(map(checksum_address, document["payees"])),
        facilitators=frozenset(map(checksum_address, document.get("facilitators", ()))),
        registry=_contract(document.get("registry")),
        relay=_contract(document.get("relay")),
        blob_url=_optional_text(document, "blob_url"),
        explorer_url=_optional_text(document, "explorer_url"),
        faucet_url=_optional_text(document, "faucet_url"),
        accounts_url=_optional_text(document, "accounts_url"),
        asset_usd=_usd(document),
        attestation_root_sha256=_fingerprint(document),
        session_idle_s=float(document.get("session_idle_s", 60)),
        call_id_header=_header(document, "call_id_header"),
        confirmations=_integer({"confirmations": usual, **document}, "confirmations"),
    )


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str) or not value:
        raise TypeError(f"{key} must be text, not {value!r}")
    return value


def _optional_text(document: Mapping[str, Any], key: str) -> str | None:
    return _text(document, key) if document.get(key) is not None else None


def _header(document: Mapping[str, Any], key: str) -> str | None:
    name = _optional_text(document, key)
    if name is not None and _HEADER.fullmatch(name) is None:
        raise ValueError(f"{key} is {name!r}; it must be `x-` and lower-case letters, digits or hyphens")
    return name


def _usd(document: Mapping[str, Any]) -> str | None:
    text = _optional_text(document, "asset_usd")
    if text is not None and quoted_price(text) is None:
        raise ValueError(f'asset_usd is {text!r}; it must be a price in USD, such as "0.20"')
    return text


def _fingerprint(document: Mapping[str, Any]) -> str:
    text = _optional_text(document, "attestation_root_sha256")
    if text is None:
        return AWS_NITRO_ROOT_SHA256
    if _FINGERPRINT.fullmatch(text) is None:
        raise ValueError("attestation_root_sha256 is not 64 hex digits")
    return text.lower()


def _integer(document: Mapping[str, Any], key: str) -> int:
    value = document[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{key} must be a non-negative integer, not {value!r}")
    return value


def _contract(document: Mapping[str, Any] | None) -> ChainContract | None:
    if document is None:
        return None
    return ChainContract(
        address=checksum_address(_text(document, "address")),
        rpc_url=_text(document, "rpc_url"),
        chain_id=_integer(document, "chain_id"),
    )
