"""Settlements for somebody else: real transactions that pay, but not what the gateway says that they pay.

A gateway that lies about settlements does best with a transaction that exists. So a new wallet is made, it signs an
authorization of the same kind, and that one is settled; the client's own stays unspent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from eth_keys.datatypes import PrivateKey

from opengradient_devnet.chain.accounts import Account, Wallets
from opengradient_devnet.contracts import UPTO_PROXY
from opengradient_devnet.facilitator.digests import permit2_digest
from opengradient_devnet.facilitator.payments import X402_VERSION

_LIFETIME_S = 300


def decoy_payment(
    requirements: Mapping[str, Any], *, wallets: Wallets, pay_to: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Payload and requirements of an upto payment of the same amount by a new wallet, to `pay_to` or the same payee."""
    amount = str(requirements["amount"])
    wanted = {**requirements, "scheme": "upto", "amount": amount, "payTo": pay_to or requirements["payTo"]}
    payer = wallets.make(opg=wallets.token.text(int(amount)), approved=True)
    return {"x402Version": X402_VERSION, "accepted": wanted, "payload": _signed(wanted, payer=payer)}, wanted


def _signed(wanted: Mapping[str, Any], *, payer: Account) -> dict[str, Any]:
    nonce, deadline_s = secrets.randbits(256), int(time.time()) + _LIFETIME_S
    facilitator: str = wanted["extra"]["facilitatorAddress"]
    digest = permit2_digest(
        chain_id=int(wanted["network"].removeprefix("eip155:")),
        token=wanted["asset"],
        amount=int(wanted["amount"]),
        spender=UPTO_PROXY,
        nonce=nonce,
        deadline=deadline_s,
        to=wanted["payTo"],
        facilitator=facilitator,
        valid_after=0,
    )
    signature = PrivateKey(bytes.fromhex(payer.private_key.removeprefix("0x"))).sign_msg_hash(digest)
    vrs = signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes([signature.v + 27])
    return {
        "permit2Authorization": {
            "from": payer.address,
            "permitted": {"token": wanted["asset"], "amount": wanted["amount"]},
            "spender": UPTO_PROXY,
            "nonce": str(nonce),
            "deadline": str(deadline_s),
            "witness": {"to": wanted["payTo"], "facilitator": facilitator, "validAfter": "0"},
        },
        "signature": "0x" + vrs.hex(),
    }
