"""Compile the contracts to `artifacts.json`: run by hand after a change to a .vy file.

    uv run --no-project --with vyper==0.4.3 python opengradient_devnet/contracts/build.py

It gives ABIs the names that Solidity's originals have (Vyper reserves `value` and `from` and has no
overloading) and adds the custom errors, which Vyper raises by selector. It knows nothing of chains; the
package itself never needs the compiler.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EVM_VERSION = "cancun"
TRANSFER_BY_SIGNATURE = "transferWithAuthorization"

_TOKEN_RENAMES = {"sender": "from", "receiver": "to", "amount": "value"}
_OF_A_TOKEN: dict[str, dict[str, str]] = {
    "Transfer": _TOKEN_RENAMES,
    "Approval": _TOKEN_RENAMES,
    "transfer": _TOKEN_RENAMES,
    "transferFrom": {"owner": "from", **_TOKEN_RENAMES},
    "approve": _TOKEN_RENAMES,
    "permit": _TOKEN_RENAMES,
    "transferWithAuthorization": _TOKEN_RENAMES,
    "receiveWithAuthorization": _TOKEN_RENAMES,
}
_TOKENS = ("OPG", "USDC")
# Vyper has no constants that a user of a module sets: the second token is the first one's source, read so.
_USDC_OF_OPG = {
    'String[16]) = "OpenGradient"': 'String[16]) = "USD Coin"',
    'String[8]) = "OPG"': 'String[8]) = "USDC"',
    'String[4]) = "1"': 'String[4]) = "2"',
    "return 18": "return 6",
}
_PROXY_ERRORS = (
    "InvalidAmount()",
    "InvalidOwner()",
    "InvalidDestination()",
    "PaymentTooEarly()",
    "Permit2612AmountMismatch()",
)
_ERRORS: dict[str, tuple[str, ...]] = {
    "Permit2": (
        "SignatureExpired(uint256 signatureDeadline)",
        "InvalidAmount(uint256 maxAmount)",
        "InvalidNonce()",
        "InvalidSignatureLength()",
        "InvalidSignature()",
        "InvalidSigner()",
        "InvalidContractSignature()",
    ),
    "UptoProxy": (*_PROXY_ERRORS, "AmountExceedsPermitted()", "UnauthorizedFacilitator()"),
    "ExactProxy": _PROXY_ERRORS,
    "BatchSettlement": (
        "ZeroDeposit()",
        "InvalidChannel()",
        "WithdrawDelayOutOfRange()",
        "DepositCollectionFailed()",
        "InvalidSignature()",
        "ClaimExceedsCeiling()",
        "ClaimExceedsBalance()",
        "NotReceiverAuthorizer()",
        "EmptyBatch()",
        "NothingToSettle()",
        "NothingToRefund()",
        "InvalidRefundNonce()",
        "NotPayer()",
        "WithdrawExceedsBalance()",
        "NoWithdrawal()",
        "WithdrawDelayNotElapsed()",
        "OnlyBatchSettlement()",
    ),
}
# Only these are deployed by a transaction; the others are put in place as runtime code.
_DEPLOYED_BY_TRANSACTION = frozenset({"SmartWallet"})


def sources_sha256() -> str:
    """One hash over every source and this script, so that artifacts of older sources are found out."""
    digest = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.vy")), HERE / "build.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _named(entry: dict[str, Any], renames: dict[str, str]) -> dict[str, Any]:
    inputs = [{**item, "name": renames.get(item["name"], item["name"])} for item in entry.get("inputs", [])]
    return {**entry, "inputs": inputs}


def _error(signature: str) -> dict[str, Any]:
    name, _, rest = signature.rstrip(")").partition("(")
    inputs = [dict(zip(("type", "name"), item.split(), strict=True)) for item in rest.split(",") if item]
    return {"type": "error", "name": name, "inputs": inputs}


def _vrs_overload(entry: dict[str, Any]) -> dict[str, Any]:
    parts = [("uint8", "v"), ("bytes32", "r"), ("bytes32", "s")]
    return {**entry, "inputs": entry["inputs"][:-1] + [{"name": name, "type": kind} for kind, name in parts]}


def published_abi(name: str, abi: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ABI under the originals' names, with overloads and custom errors."""
    renames = _OF_A_TOKEN if name in _TOKENS else {}
    callable_by_name = [item for item in abi if item["type"] != "fallback"]
    entries = [_named(item, renames.get(item.get("name", ""), {})) for item in callable_by_name]
    if name in _TOKENS:
        entries += [_vrs_overload(item) for item in entries if item.get("name") == TRANSFER_BY_SIGNATURE]
    return entries + [_error(signature) for signature in _ERRORS.get(name, ())]


def _usdc(source: str) -> str:
    for before, after in _USDC_OF_OPG.items():
        if source.count(before) != 1:
            raise ValueError(f"OPG.vy has {before!r} {source.count(before)} times, and USDC is made by replacing it.")
        source = source.replace(before, after)
    return source


def build() -> dict[str, Any]:
    """Compile every contract whose file name starts with a capital; the others are imported modules."""
    import vyper  # type: ignore[import-untyped]  # a build tool, not a dependency
    from vyper.compiler.input_bundle import FilesystemInputBundle  # type: ignore[import-untyped]  # as above
    from vyper.compiler.settings import Settings  # type: ignore[import-untyped]  # as above

    contracts: dict[str, Any] = {}
    sources = {path.stem: path.read_text() for path in HERE.glob("[A-Z]*.vy")}
    for name, source in sorted({**sources, "USDC": _usdc(sources["OPG"])}.items()):
        output = vyper.compile_code(
            source,
            contract_path=HERE / f"{name}.vy",
            input_bundle=FilesystemInputBundle([HERE]),
            output_formats=["abi", "bytecode", "bytecode_runtime"],
            settings=Settings(evm_version=EVM_VERSION),
        )
        artifact = {"abi": published_abi(name, output["abi"]), "runtime": output["bytecode_runtime"]}
        if name in _DEPLOYED_BY_TRANSACTION:
            artifact["init"] = output["bytecode"]
        contracts[name] = artifact
    return {
        "compiler": f"vyper {vyper.__version__}",
        "evm_version": EVM_VERSION,
        "sources_sha256": sources_sha256(),
        "contracts": contracts,
    }


if __name__ == "__main__":
    (HERE / "artifacts.json").write_text(json.dumps(build(), indent=1, sort_keys=True) + "\n")
