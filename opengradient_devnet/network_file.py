"""What a client must know of a running devnet, as JSON: served at GET /network and written to a file.

It holds no secret.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opengradient_devnet.contracts import EXACT_PROXY, PERMIT2, RELAY, TEE_REGISTRY, UPTO_PROXY
from opengradient_devnet.gateway.intake import CALL_ID_HEADER
from opengradient_devnet.money import OPG_TOKEN, Token


def describe_network(
    *,
    chain_id: int,
    gateway_url: str,
    https_gateway_url: str,
    payees: list[str],
    facilitators: list[str],
    token: Token,
    session_idle_s: float,
    attestation_root_sha256: str,
) -> dict[str, Any]:
    """The network object; every URL hangs below `gateway_url`. The explorer writes amounts of OPG only."""
    rpc_url = f"{gateway_url}/rpc"
    explorer = {"explorer_url": f"{gateway_url}/explorer"} if token is OPG_TOKEN else {"asset_usd": "1"}
    return {
        "name": "devnet",
        "chain_id": chain_id,
        "network": f"eip155:{chain_id}",
        "rpc_url": rpc_url,
        "gateway_url": gateway_url,
        "https_gateway_url": https_gateway_url,
        "facilitator_url": f"{gateway_url}/facilitator",
        "faucet_url": f"{gateway_url}/faucet",
        "accounts_url": f"{gateway_url}/accounts",
        **explorer,
        "blob_url": f"{gateway_url}/blobs",
        "asset": asdict(token),
        "permit2": PERMIT2,
        "upto_proxy": UPTO_PROXY,
        "exact_proxy": EXACT_PROXY,
        "payees": payees,
        "facilitators": facilitators,
        "registry": {"address": TEE_REGISTRY, "rpc_url": rpc_url, "chain_id": chain_id},
        "relay": {"address": RELAY, "rpc_url": rpc_url, "chain_id": chain_id},
        "attestation_root_sha256": attestation_root_sha256,
        "session_idle_s": session_idle_s,
        "call_id_header": CALL_ID_HEADER,
    }


def write_network_file(path: Path, *, network: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old network or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        json.dump(network, file, indent=2)
        file.write("\n")
    Path(file.name).replace(path)


def remove_network_file(path: Path, *, network: Mapping[str, Any]) -> None:
    """Take the file away, unless another devnet has written its own in the meantime."""
    try:
        is_ours = json.loads(path.read_text(encoding="utf-8")) == network
    except (FileNotFoundError, ValueError):
        return
    if is_ours:
        path.unlink(missing_ok=True)
