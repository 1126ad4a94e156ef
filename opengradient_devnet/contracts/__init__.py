"""signatures only, the body follows"""

from __future__ import annotations

from typing import Any

PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
UPTO_PROXY = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"
EXACT_PROXY = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"
OPG = "0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB"
MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11"
TEE_REGISTRY = "0x703cB174AEadB35D611858369B4b1111dC9Abda6"
RELAY = "0x…"  # keccak("opengradient devnet settlement relay")[12:], checksummed


class Contract:
    """One deployed contract. `function` is a name, or a full signature where a name is overloaded."""

    name: str
    address: str
    abi: list[dict[str, Any]]

    def encode(self, function: str, *arguments: Any) -> bytes:
        """Call data."""
        raise NotImplementedError

    def decode(self, function: str, output: bytes) -> tuple[Any, ...]:
        """Return values, always as a tuple."""
        raise NotImplementedError

    def topic(self, event: str) -> str:
        """topic0 of an event, 0x-hex."""
        raise NotImplementedError

    def decode_log(self, log: dict[str, Any]) -> dict[str, Any]:
        """{"event": name, **arguments} of a JSON-RPC log of this contract."""
        raise NotImplementedError


def contract(name: str) -> Contract:
    """One of OPG, Permit2, UptoProxy, ExactProxy, Relay, TEERegistry, Multicall3."""
    raise NotImplementedError


# TEERegistry functions (see contracts/TEERegistry.vy): registerTEE(address paymentAddress, string endpoint,
#   bytes publicKey, bytes tlsCertificate, bytes32 pcrHash, uint8 teeType,
#   (uint8 keyId,uint16 kemId,uint16 kdfId,uint16 aeadId,bytes publicKey,bytes keyConfig,uint256 registeredAt)) -> bytes32,
#   heartbeat(bytes32), setEnabled(bytes32,bool), getActiveTEEs(uint8), getTEE(bytes32)
# Relay: batchSettle(bytes32 merkleRoot, uint256 batchSize, bytes walrusBlobId),
#   settleIndividual(bytes32 teeId, bytes32 inputHash, bytes32 outputHash, uint256 timestamp, address ethAddress,
#                    bytes walrusBlobId, bytes signature)
