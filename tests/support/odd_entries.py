"""Entries of a challenge: one that can be paid, and kinds that cannot, each with words of the reason."""

from __future__ import annotations

from typing import Any

PAYEE = "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"


def upto(**changes: Any) -> dict[str, Any]:
    extra = {
        "name": "OpenGradient",
        "version": "1",
        "facilitatorAddress": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "assetTransferMethod": "permit2",
        **changes.pop("extra", {}),
    }
    return {
        "scheme": "upto",
        "network": "eip155:8453",
        "asset": "0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
        "amount": "100000000000000000",
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "extra": extra,
        **changes,
    }


ODD_ENTRIES = {
    "another transfer method": (upto(scheme="exact", extra={"assetTransferMethod": "erc7710"}), "'erc7710'"),
    "upto that anybody could settle": (upto(extra={"facilitatorAddress": None}), "anybody could settle it"),
    "money before the answer": (upto(extra={"paymentFlow": "escrow"}), "the escrow flow"),
    "an amount in hex": (upto(amount="0x2710"), "amount is '0x2710'"),
    "a native coin": (upto(asset="native"), "asset: 'native' is not an address"),
    "another chain": (upto(network="solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"), "is not an EVM chain"),
    "another scheme": (upto(scheme="deferred"), "scheme 'deferred'"),
    "no object": ("upto", "it is 'upto', not an object"),
    "extra of another shape": ({**upto(), "extra": []}, "extra is a list, not an object"),
}
