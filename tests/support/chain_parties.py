"""Funded parties on a bare chain, and payments signed by eth-account: a third opinion on every digest."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from eth_account import Account as EthAccount
from eth_account.messages import encode_typed_data

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.contracts import EXACT_PROXY, OPG, PERMIT2, UPTO_PROXY, contract

UNLIMITED = 2**256 - 1
OPG_DOMAIN_TYPE = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]
PERMIT2_DOMAIN_TYPE = [item for item in OPG_DOMAIN_TYPE if item["name"] != "version"]
TOKEN_PERMISSIONS = [{"name": "token", "type": "address"}, {"name": "amount", "type": "uint256"}]
UPTO_WITNESS = [
    {"name": "to", "type": "address"},
    {"name": "facilitator", "type": "address"},
    {"name": "validAfter", "type": "uint256"},
]
EXACT_WITNESS = [item for item in UPTO_WITNESS if item["name"] != "facilitator"]
PERMIT_WITNESS = [
    {"name": "permitted", "type": "TokenPermissions"},
    {"name": "spender", "type": "address"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
    {"name": "witness", "type": "Witness"},
]
TRANSFER_FIELDS = [
    {"name": "from", "type": "address"},
    {"name": "to", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "validAfter", "type": "uint256"},
    {"name": "validBefore", "type": "uint256"},
    {"name": "nonce", "type": "bytes32"},
]
PERMIT_FIELDS = [
    {"name": "owner", "type": "address"},
    {"name": "spender", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    address: str
    private_key: str = field(repr=False)

    def sign(self, typed_data: dict[str, Any]) -> bytes:
        signed = EthAccount.sign_message(encode_typed_data(full_message=typed_data), self.private_key)
        return bytes(signed.signature)


def new_party() -> Party:
    account = EthAccount.create()
    return Party(address=account.address, private_key="0x" + account.key.hex().removeprefix("0x"))


def funded_party(chain: Chain, *, opg_atomic: int = 100 * 10**18, approved: bool = False) -> Party:
    party = new_party()
    chain.fund(party.address, token_atomic=opg_atomic, native_wei=10**20)
    if approved:
        chain.send(party, to=OPG, data=contract("OPG").encode("approve", PERMIT2, UNLIMITED))
    return party


def requirements(
    chain: Chain,
    *,
    payee: str,
    facilitator: str,
    scheme: str = "upto",
    method: str = "permit2",
    amount: int = 10**17,
) -> dict[str, Any]:
    extra = {"name": "OpenGradient", "version": "1", "assetTransferMethod": method}
    return {
        "scheme": scheme,
        "network": f"eip155:{chain.chain_id}",
        "asset": OPG,
        "amount": str(amount),
        "payTo": payee,
        "maxTimeoutSeconds": 300,
        "extra": {**extra, "facilitatorAddress": facilitator},
    }


def envelope(payload: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    resource = {"url": "http://127.0.0.1/v1/chat/completions"}
    return {"x402Version": 2, "payload": payload, "accepted": wanted, "resource": resource}


def permit2_authorization(payer: str, wanted: dict[str, Any], **changes: str) -> dict[str, Any]:
    """An unsigned authorization for these requirements; `changes` replaces fields at any depth."""
    upto = wanted["scheme"] == "upto"
    witness = {"to": wanted["payTo"], "validAfter": "0"}
    if upto:
        witness["facilitator"] = wanted["extra"]["facilitatorAddress"]
    authorization: dict[str, Any] = {
        "from": payer,
        "permitted": {"token": wanted["asset"], "amount": wanted["amount"]},
        "spender": UPTO_PROXY if upto else EXACT_PROXY,
        "nonce": str(secrets.randbits(256)),
        "deadline": str(int(time.time()) + 300),
        "witness": witness,
    }
    for key, value in changes.items():
        place = next(part for part in (authorization, authorization["permitted"], witness) if key in part)
        place[key] = value
    return authorization


def sign_permit2(signer: Party, authorization: dict[str, Any], *, chain_id: int) -> bytes:
    witness = {**authorization["witness"], "validAfter": int(authorization["witness"]["validAfter"])}
    permitted = authorization["permitted"]
    return signer.sign(
        {
            "types": {
                "EIP712Domain": PERMIT2_DOMAIN_TYPE,
                "PermitWitnessTransferFrom": PERMIT_WITNESS,
                "TokenPermissions": TOKEN_PERMISSIONS,
                "Witness": UPTO_WITNESS if "facilitator" in witness else EXACT_WITNESS,
            },
            "primaryType": "PermitWitnessTransferFrom",
            "domain": {"name": "Permit2", "chainId": chain_id, "verifyingContract": PERMIT2},
            "message": {
                "permitted": {"token": permitted["token"], "amount": int(permitted["amount"])},
                "spender": authorization["spender"],
                "nonce": int(authorization["nonce"]),
                "deadline": int(authorization["deadline"]),
                "witness": witness,
            },
        }
    )


def permit2_payment(
    chain: Chain, payer: Party, wanted: dict[str, Any], *, signer: Party | None = None, **changes: str
) -> dict[str, Any]:
    changes = {"payer": payer.address} | changes
    authorization = permit2_authorization(changes.pop("payer"), wanted, **changes)
    signature = sign_permit2(signer or payer, authorization, chain_id=chain.chain_id)
    return envelope({"permit2Authorization": authorization, "signature": "0x" + signature.hex()}, wanted)


def opg_typed_data(chain: Chain, primary: str, fields: list[dict[str, str]], message: Any) -> dict[str, Any]:
    return {
        "types": {"EIP712Domain": OPG_DOMAIN_TYPE, primary: fields},
        "primaryType": primary,
        "domain": {
            "name": "OpenGradient",
            "version": "1",
            "chainId": chain.chain_id,
            "verifyingContract": OPG,
        },
        "message": message,
    }


def eip3009_authorization(payer: str, wanted: dict[str, Any], **changes: str) -> dict[str, str]:
    return {
        "from": payer,
        "to": wanted["payTo"],
        "value": wanted["amount"],
        "validAfter": "0",
        "validBefore": str(int(time.time()) + 300),
        "nonce": "0x" + secrets.token_hex(32),
    } | changes


def sign_eip3009(
    chain: Chain, signer: Party, authorization: dict[str, str], *, primary: str = "TransferWithAuthorization"
) -> bytes:
    numbers = {key: int(authorization[key]) for key in ("value", "validAfter", "validBefore")}
    message = {**authorization, **numbers, "nonce": bytes.fromhex(authorization["nonce"][2:])}
    return signer.sign(opg_typed_data(chain, primary, TRANSFER_FIELDS, message))


def eip3009_payment(
    chain: Chain, payer: Party, wanted: dict[str, Any], *, signer: Party | None = None, **changes: str
) -> dict[str, Any]:
    changes = {"payer": payer.address} | changes
    authorization = eip3009_authorization(changes.pop("payer"), wanted, **changes)
    signature = sign_eip3009(chain, signer or payer, authorization)
    return envelope({"authorization": authorization, "signature": "0x" + signature.hex()}, wanted)


def sign_permit(chain: Chain, owner: Party, *, spender: str, value: int, deadline: int, nonce: int = 0) -> bytes:
    message = {
        "owner": owner.address,
        "spender": spender,
        "value": value,
        "nonce": nonce,
        "deadline": deadline,
    }
    return owner.sign(opg_typed_data(chain, "Permit", PERMIT_FIELDS, message))


def deploy_wallet(chain: Chain, owner: Party) -> str:
    """A deployed EIP-1271 wallet of `owner`, with OPG and an approval for Permit2."""
    wallet = contract("SmartWallet")
    init = (wallet.init or b"") + bytes.fromhex(owner.address[2:]).rjust(32, b"\0")
    address: str = chain.send(owner, to=None, data=init)["contractAddress"]
    chain.fund(address, token_atomic=10**19)
    approve = contract("OPG").encode("approve", PERMIT2, UNLIMITED)
    chain.send(owner, to=address, data=wallet.encode("execute", OPG, approve))
    return address
