"""A payer of channels for tests of the devnet, made of eth-account only: it must share no code with either side."""

from __future__ import annotations

import secrets
import time
from typing import Any, Self

import httpx
from eth_account import Account as EthAccount
from eth_utils.crypto import keccak

from opengradient_devnet import Devnet
from support.payer import PERMIT2, chat_body, decode, encode

CONTRACT = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
BY_TOKEN = "0x4020806089470a89826cB9fB1f4059150b550004"
BY_PERMIT2 = "0x4020425FAf3B746C082C2f942b4E5159887B0005"
CONFIG = [
    {"name": name, "type": kind}
    for name, kind in (
        ("payer", "address"),
        ("payerAuthorizer", "address"),
        ("receiver", "address"),
        ("receiverAuthorizer", "address"),
        ("token", "address"),
        ("withdrawDelay", "uint40"),
        ("salt", "bytes32"),
    )
]
VOUCHER = [{"name": "channelId", "type": "bytes32"}, {"name": "maxClaimableAmount", "type": "uint128"}]
PERMIT = [
    {"name": "permitted", "type": "TokenPermissions"},
    {"name": "spender", "type": "address"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
    {"name": "witness", "type": "DepositWitness"},
]
RECEIVE = [
    {"name": "from", "type": "address"},
    {"name": "to", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "validAfter", "type": "uint256"},
    {"name": "validBefore", "type": "uint256"},
    {"name": "nonce", "type": "bytes32"},
]


class ChannelPayer:
    """One wallet with one channel at the gateway of a devnet."""

    def __init__(self, net: Devnet, account: Any) -> None:
        self.net = net
        self.wallet = EthAccount.from_key(account.private_key)
        self.http = httpx.Client(base_url=net.gateway_url, timeout=30, verify=False)
        asked = self.http.post("/v1/chat/completions", json=chat_body())
        self.challenge = decode(asked.headers["PAYMENT-REQUIRED"])
        self.offer = next(one for one in self.challenge["accepts"] if one["scheme"] == "batch-settlement")
        self.amount = int(self.offer["amount"])
        self.config = {
            "payer": self.wallet.address,
            "payerAuthorizer": self.wallet.address,
            "receiver": self.offer["payTo"],
            "receiverAuthorizer": self.offer["extra"]["receiverAuthorizer"],
            "token": self.offer["asset"],
            "withdrawDelay": self.offer["extra"]["withdrawDelay"],
            "salt": "0x" + secrets.token_hex(32),
        }
        self.channel_id = self._signed({"ChannelConfig": CONFIG}, {**self.config, "salt": self._salt}).message_hash
        self.charged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.http.close()

    @property
    def _salt(self) -> bytes:
        return bytes.fromhex(self.config["salt"][2:])

    @property
    def _chain_id(self) -> int:
        return int(self.offer["network"].partition(":")[2])

    def _signed(self, types: dict[str, Any], message: dict[str, Any], domain: dict[str, Any] | None = None) -> Any:
        ours = {
            "name": "x402 Batch Settlement",
            "version": "1",
            "chainId": self._chain_id,
            "verifyingContract": CONTRACT,
        }
        return self.wallet.sign_typed_data(domain or ours, types, message)

    def voucher(self, most: int) -> dict[str, Any]:
        message = {"channelId": self.channel_id, "maxClaimableAmount": most}
        signature = self._signed({"Voucher": VOUCHER}, message).signature
        named = {"channelId": "0x" + self.channel_id.hex(), "maxClaimableAmount": str(most)}
        return {"channelConfig": self.config, "voucher": {**named, "signature": "0x" + signature.hex()}}

    def deposit(self, amount: int) -> dict[str, Any]:
        deadline = int(time.time()) + 300
        if self.offer["extra"]["assetTransferMethod"] == "eip3009":
            authorization = self._receive(amount, deadline)
        else:
            authorization = self._permit(amount, deadline)
        return {"amount": str(amount), "authorization": authorization}

    def _permit(self, amount: int, deadline: int) -> dict[str, Any]:
        nonce = secrets.randbits(256)
        message = {
            "permitted": {"token": self.config["token"], "amount": amount},
            "spender": BY_PERMIT2,
            "nonce": nonce,
            "deadline": deadline,
            "witness": {"channelId": self.channel_id},
        }
        types = {
            "PermitWitnessTransferFrom": PERMIT,
            "TokenPermissions": [{"name": "token", "type": "address"}, {"name": "amount", "type": "uint256"}],
            "DepositWitness": [{"name": "channelId", "type": "bytes32"}],
        }
        domain = {"name": "Permit2", "chainId": self._chain_id, "verifyingContract": PERMIT2}
        signature = self._signed(types, message, domain).signature
        return {
            "permit2Authorization": {
                "from": self.wallet.address,
                "permitted": {"token": self.config["token"], "amount": str(amount)},
                "spender": BY_PERMIT2,
                "nonce": str(nonce),
                "deadline": str(deadline),
                "witness": {"channelId": "0x" + self.channel_id.hex()},
                "signature": "0x" + signature.hex(),
            }
        }

    def _receive(self, amount: int, deadline: int) -> dict[str, Any]:
        salt = secrets.token_bytes(32)
        message = {
            "from": self.wallet.address,
            "to": BY_TOKEN,
            "value": amount,
            "validAfter": 0,
            "validBefore": deadline,
            "nonce": keccak(self.channel_id + salt),
        }
        extra = self.offer["extra"]
        domain = {
            "name": extra["name"],
            "version": extra["version"],
            "chainId": self._chain_id,
            "verifyingContract": self.config["token"],
        }
        signature = self._signed({"ReceiveWithAuthorization": RECEIVE}, message, domain).signature
        return {
            "erc3009Authorization": {
                "validAfter": "0",
                "validBefore": str(deadline),
                "salt": "0x" + salt.hex(),
                "signature": "0x" + signature.hex(),
            }
        }

    def send(self, payload: dict[str, Any], **body: Any) -> httpx.Response:
        content = {"x402Version": 2, "payload": payload, "accepted": self.offer, "resource": self.challenge["resource"]}
        headers = {"PAYMENT-SIGNATURE": encode(content), "Authorization": "Bearer unused"}
        return self.http.post("/v1/chat/completions", json=chat_body(**body), headers=headers)

    def call(self, *, deposit: int | None = None, **body: Any) -> httpx.Response:
        """A paid call; what it was charged is added up."""
        payload = {"type": "voucher", **self.voucher(self.charged + self.amount)}
        if deposit is not None:
            payload |= {"type": "deposit", "deposit": self.deposit(deposit)}
        answer = self.send(payload, **body)
        if "PAYMENT-RESPONSE" in answer.headers:
            self.charged += int(decode(answer.headers["PAYMENT-RESPONSE"])["extra"]["chargedAmount"])
        return answer
