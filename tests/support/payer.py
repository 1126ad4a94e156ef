"""A payer for tests of the devnet, made of eth-account only: it must share no code with either side."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
from eth_account import Account as EthAccount

if TYPE_CHECKING:
    from opengradient_devnet import Devnet, SettlementRecord

PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
SPENDERS = {
    "upto": "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002",
    "exact": "0x402085c248EeA27D92E8b30b2C58ed07f9E20001",
}
_PERMIT2_TYPES = {
    "TokenPermissions": [{"name": "token", "type": "address"}, {"name": "amount", "type": "uint256"}],
    "PermitWitnessTransferFrom": [
        {"name": "permitted", "type": "TokenPermissions"},
        {"name": "spender", "type": "address"},
        {"name": "nonce", "type": "uint256"},
        {"name": "deadline", "type": "uint256"},
        {"name": "witness", "type": "Witness"},
    ],
}
_TRANSFER_TYPES = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}


def decode(header: str) -> dict[str, Any]:
    """The JSON object in an x402 header."""
    return json.loads(base64.b64decode(header))


def encode(content: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


def chat_body(text: str = "What is x402?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}


def sign(
    requirements: Mapping[str, Any],
    *,
    private_key: str,
    nonce: int | None = None,
    deadline_s: int | None = None,
) -> dict[str, Any]:
    """The `payload` of a payment for these requirements."""
    payer = EthAccount.from_key(private_key)
    nonce = secrets.randbits(256) if nonce is None else nonce
    deadline = deadline_s or int(time.time()) + requirements["maxTimeoutSeconds"]
    if requirements["scheme"] == "exact" and requirements["extra"].get("assetTransferMethod") != "permit2":
        return _transfer(requirements, payer=payer, nonce=nonce, deadline=deadline)
    witness_fields = [{"name": "to", "type": "address"}]
    witness = {"to": requirements["payTo"]}
    if requirements["scheme"] == "upto":
        witness_fields.append({"name": "facilitator", "type": "address"})
        witness["facilitator"] = requirements["extra"]["facilitatorAddress"]
    witness_fields.append({"name": "validAfter", "type": "uint256"})
    spender = SPENDERS[requirements["scheme"]]
    permitted = {"token": requirements["asset"], "amount": int(requirements["amount"])}
    message = {
        "permitted": permitted,
        "spender": spender,
        "nonce": nonce,
        "deadline": deadline,
        "witness": {**witness, "validAfter": 0},
    }
    domain = {"name": "Permit2", "chainId": _chain_id(requirements), "verifyingContract": PERMIT2}
    signed = payer.sign_typed_data(domain, {**_PERMIT2_TYPES, "Witness": witness_fields}, message)
    return {
        "permit2Authorization": {
            "from": payer.address,
            "permitted": {"token": requirements["asset"], "amount": requirements["amount"]},
            "spender": spender,
            "nonce": str(nonce),
            "deadline": str(deadline),
            "witness": {**witness, "validAfter": "0"},
        },
        "signature": "0x" + signed.signature.hex(),
    }


def _transfer(requirements: Mapping[str, Any], *, payer: Any, nonce: int, deadline: int) -> dict[str, Any]:
    extra = requirements["extra"]
    domain = {
        "name": extra["name"],
        "version": extra["version"],
        "chainId": _chain_id(requirements),
        "verifyingContract": requirements["asset"],
    }
    message = {
        "from": payer.address,
        "to": requirements["payTo"],
        "value": int(requirements["amount"]),
        "validAfter": 0,
        "validBefore": deadline,
        "nonce": nonce.to_bytes(32, "big"),
    }
    signed = payer.sign_typed_data(domain, _TRANSFER_TYPES, message)
    return {
        "authorization": {
            **message,
            "value": requirements["amount"],
            "validAfter": "0",
            "validBefore": str(deadline),
            "nonce": "0x" + message["nonce"].hex(),
        },
        "signature": "0x" + signed.signature.hex(),
    }


def _chain_id(requirements: Mapping[str, Any]) -> int:
    return int(requirements["network"].removeprefix("eip155:"))


class Payer:
    """An HTTP client with a wallet. It pays when it is told to, and remembers nothing."""

    def __init__(self, gateway_url: str, *, private_key: str, **client: Any) -> None:
        self.private_key = private_key
        self.address = EthAccount.from_key(private_key).address
        headers = {"authorization": "Bearer anything"}
        # Certificates that plain http does not need take longer to load than a test to run.
        client.setdefault("verify", gateway_url.startswith("https"))
        self.http = httpx.Client(base_url=gateway_url, headers=headers, trust_env=False, timeout=30, **client)

    def __enter__(self) -> Payer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.http.close()

    def challenge(self, *, path: str = "/v1/chat/completions") -> dict[str, Any]:
        """The terms that an unpaid request gets."""
        response = self.http.post(path, json=chat_body())
        assert response.status_code == 402, response.text
        return decode(response.headers["payment-required"])

    def payment(self, challenge: Mapping[str, Any] | None = None, *, offer: int = 0, **signing: Any) -> str:
        """A signed PAYMENT-SIGNATURE for one offer of a challenge."""
        challenge = challenge or self.challenge()
        accepted = challenge["accepts"][offer]
        payload = sign(accepted, private_key=self.private_key, **signing)
        content = {
            "x402Version": 2,
            "payload": payload,
            "accepted": accepted,
            "resource": challenge["resource"],
        }
        return encode(content)

    def chat(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        payment: str | None = None,
        session: str | None = None,
        headers: Mapping[str, str] | None = None,
        path: str = "/v1/chat/completions",
    ) -> httpx.Response:
        """One request, with the payment or the session it is given, or else with a new payment."""
        if payment is None and session is None:
            payment = self.payment()
        paid = {"payment-signature": payment} if payment else {}
        paid |= {"x-upto-session": session} if session else {}
        return self.http.post(path, json=body or chat_body(), headers={**paid, **(headers or {})})

    def settlements(self, net: Devnet) -> list[SettlementRecord]:
        """What this payer's payments on `net` have been settled for, after all sessions are closed."""
        return [record for record in net.close_sessions() if record.payer == self.address]
