"""The devnet's contracts: their addresses, their ABIs, and encoding and decoding by name.

`build.py` compiles the sources to `artifacts.json`; the package itself needs no compiler.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from opengradient_devnet.money import OPG_TOKEN, USDC_TOKEN

PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"  # Uniswap, the same on every chain
UPTO_PROXY = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"  # x402 x402UptoPermit2Proxy
EXACT_PROXY = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"  # x402 x402ExactPermit2Proxy
BATCH_SETTLEMENT = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"  # x402 x402BatchSettlement
ERC3009_COLLECTOR = "0x4020806089470a89826cB9fB1f4059150b550004"  # x402 ERC3009DepositCollector
PERMIT2_COLLECTOR = "0x4020425FAf3B746C082C2f942b4E5159887B0005"  # x402 Permit2DepositCollector
OPG = OPG_TOKEN.address
USDC = USDC_TOKEN.address
MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11"  # multicall3.com
TEE_REGISTRY = "0x703cB174AEadB35D611858369B4b1111dC9Abda6"  # OpenGradient EVM
# The live relay has no published address; nobody has a key for ours.
RELAY: str = to_checksum_address(keccak(text="opengradient devnet settlement relay")[12:])

ADDRESSES = {
    "OPG": OPG,
    "USDC": USDC,
    "Permit2": PERMIT2,
    "UptoProxy": UPTO_PROXY,
    "ExactProxy": EXACT_PROXY,
    "BatchSettlement": BATCH_SETTLEMENT,
    "Erc3009Collector": ERC3009_COLLECTOR,
    "Permit2Collector": PERMIT2_COLLECTOR,
    "Multicall3": MULTICALL3,
    "TEERegistry": TEE_REGISTRY,
    "Relay": RELAY,
}

_ERROR_STRING = keccak(text="Error(string)")[:4]
_PANIC = keccak(text="Panic(uint256)")[:4]


@cache
def artifacts() -> dict[str, Any]:
    """The whole of `artifacts.json`: compiler, hash of the sources, ABI and code of each contract."""
    loaded: dict[str, Any] = json.loads(files(__name__).joinpath("artifacts.json").read_text())
    return loaded


def abi_type(item: dict[str, Any]) -> str:
    """The canonical type of an ABI parameter, with tuples spelled out."""
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(abi_type(part) for part in item['components'])}){kind[5:]}"


def signature_of(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(abi_type(item) for item in entry['inputs'])})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One contract. A `function` is a name, or a full signature where the name is overloaded."""

    name: str
    address: str
    abi: list[dict[str, Any]] = field(repr=False)
    runtime: bytes = field(repr=False)
    init: bytes | None = field(default=None, repr=False)

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        named = [entry for entry in self.abi if entry["type"] == kind]
        for entry in named:
            if name in (entry["name"], signature_of(entry)):
                return entry
        raise KeyError(f"{self.name} has no {kind} {name}; it has {sorted(map(signature_of, named))}")

    def selector(self, function: str) -> bytes:
        return keccak(text=signature_of(self._entry("function", function)))[:4]

    def encode(self, function: str, *arguments: Any) -> bytes:
        """Call data. Structs are tuples, bytes are bytes."""
        entry = self._entry("function", function)
        types = [abi_type(item) for item in entry["inputs"]]
        return keccak(text=signature_of(entry))[:4] + encode(types, arguments)

    def decode(self, function: str, output: bytes) -> tuple[Any, ...]:
        """What a call returned, always as a tuple."""
        entry = self._entry("function", function)
        return decode([abi_type(item) for item in entry["outputs"]], output)

    def decode_call(self, data: bytes) -> dict[str, Any]:
        """`{"function": name, "arguments": {…}}` of call data, structs as dicts; raises KeyError for a foreign one.

        Data behind the arguments is ignored, as the contracts do.
        """
        for entry in self.abi:
            if entry["type"] == "function" and keccak(text=signature_of(entry))[:4] == data[:4]:
                types = [abi_type(item) for item in entry["inputs"]]
                values = decode(types, data[4:], strict=False)
                return {"function": entry["name"], "arguments": _named(entry["inputs"], values)}
        raise KeyError(f"{self.name} has no function with selector 0x{data[:4].hex()}")

    def topic(self, event: str) -> str:
        """An event's first topic, 0x-hex."""
        return "0x" + keccak(text=signature_of(self._entry("event", event))).hex()

    def decode_log(self, log: dict[str, Any]) -> dict[str, Any]:
        """`{"event": name, …arguments}` of a JSON-RPC log; raises KeyError for a foreign event."""
        for entry in self.abi:
            if entry["type"] == "event" and self.topic(signature_of(entry)) == log["topics"][0]:
                return {"event": entry["name"], **_event_arguments(entry, log)}
        raise KeyError(f"{self.name} has no event with topic {log['topics'][0]}")


def _named(items: list[dict[str, Any]], values: Sequence[Any]) -> dict[str, Any]:
    """ABI values under the names of their parameters, structs included; lists of structs stay tuples."""
    return {
        item["name"]: _named(item["components"], value) if item["type"] == "tuple" else value
        for item, value in zip(items, values, strict=True)
    }


def _event_arguments(entry: dict[str, Any], log: dict[str, Any]) -> dict[str, Any]:
    indexed = [item for item in entry["inputs"] if item["indexed"]]
    plain = [item for item in entry["inputs"] if not item["indexed"]]
    arguments: dict[str, Any] = {}
    for item, topic in zip(indexed, log["topics"][1:], strict=True):
        (arguments[item["name"]],) = decode([abi_type(item)], bytes.fromhex(topic[2:]))
    values = decode([abi_type(item) for item in plain], bytes.fromhex(log["data"][2:]))
    arguments.update(zip((item["name"] for item in plain), values, strict=True))
    return {item["name"]: arguments[item["name"]] for item in entry["inputs"]}


@cache
def contract(name: str) -> Contract:
    """One of the contracts in `ADDRESSES`, or SmartWallet (whose address is the zero address)."""
    artifact = artifacts()["contracts"][name]
    init = artifact.get("init")
    return Contract(
        name=name,
        address=ADDRESSES.get(name, "0x" + "00" * 20),
        abi=artifact["abi"],
        runtime=bytes.fromhex(artifact["runtime"][2:]),
        init=bytes.fromhex(init[2:]) if init else None,
    )


@cache
def _errors_by_selector() -> dict[bytes, dict[str, Any]]:
    entries = [entry for name in ADDRESSES for entry in contract(name).abi if entry["type"] == "error"]
    return {keccak(text=signature_of(entry))[:4]: entry for entry in entries}


def revert_reason(data: bytes) -> str:
    """Revert data in words: `InvalidNonce()`, `SignatureExpired(123)`, or the text of an `Error(string)`."""
    selector, rest = data[:4], data[4:]
    entry = _errors_by_selector().get(selector)
    if entry is not None:
        values = decode([abi_type(item) for item in entry["inputs"]], rest)
        return f"{entry['name']}({', '.join(map(str, values))})"
    if selector == _ERROR_STRING and len(rest) >= 64:
        return str(decode(["string"], rest, strict=False)[0])
    if selector == _PANIC and len(rest) >= 32:
        return f"Panic(0x{int.from_bytes(rest[:32], 'big'):02x})"
    return f"0x{data.hex()}" if data else "no reason given"
