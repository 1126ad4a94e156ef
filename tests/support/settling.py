"""Authorizations signed by the product, and settled on the devnet's chain by hand, in every possible way."""

from __future__ import annotations

import base64
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

from opengradient_devnet import Account, Devnet
from opengradient_devnet.contracts import EXACT_PROXY, MULTICALL3, OPG, UPTO_PROXY, contract
from opengradient_x402.networks import Network, load_network
from opengradient_x402.payment.challenge import parse_challenge
from opengradient_x402.settlement.recognition import SignedTerms
from opengradient_x402.signer import Authorization, LocalSigner, authorize

_calls = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """A funded wallet that signs with the product's code."""

    account: Account
    network: Network

    @property
    def signer(self) -> LocalSigner:
        return LocalSigner(self.account.private_key)

    def sign(
        self,
        *,
        facilitator: str,
        amount_atomic: int = 10**17,
        scheme: str = "upto",
        method: str = "permit2",
        payee: str | None = None,
        nonce: int | None = None,
        ago_s: int = 0,
        timeout_s: int = 300,
    ) -> Authorization:
        entry = {
            "scheme": scheme,
            "network": self.network.caip2,
            "asset": OPG,
            "amount": str(amount_atomic),
            "payTo": payee or next(iter(self.network.payees)),
            "maxTimeoutSeconds": timeout_s,
            "extra": {
                "name": self.network.asset.name,
                "version": self.network.asset.version,
                "assetTransferMethod": method,
                "facilitatorAddress": facilitator,
            },
        }
        document = {"x402Version": 2, "resource": {"url": "http://127.0.0.1"}, "accepts": [entry]}
        challenge = parse_challenge(base64.b64encode(json.dumps(document).encode()).decode())
        return authorize(
            challenge.terms[0],
            signer=self.signer,
            network=self.network,
            nonce=self.signer.nonce_for(f"call-{next(_calls)}") if nonce is None else nonce,
            now_s=int(time.time()) - ago_s,
        )

    def terms(self, authorization: Authorization) -> SignedTerms:
        return SignedTerms.of(authorization, network=self.network)


def new_payer(net: Devnet, *, opg: str = "10", approved: bool = True) -> Payer:
    return Payer(account=net.account(opg=opg, approved=approved), network=load_network(f"{net.gateway_url}/network"))


def settle_call(authorization: Authorization, amount_atomic: int | None = None) -> tuple[str, bytes]:
    """Where to send a settlement, and its calldata."""
    signature = bytes.fromhex(authorization.payload["signature"][2:])
    terms = authorization.terms
    if terms.transfer_method == "eip3009":
        call = contract("OPG").encode(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            authorization.payer,
            terms.pay_to,
            terms.amount_atomic,
            0,
            authorization.deadline_s,
            authorization.nonce.to_bytes(32, "big"),
            signature,
        )
        return OPG, call
    permit = ((terms.asset, terms.amount_atomic), authorization.nonce, authorization.deadline_s)
    if terms.scheme == "exact":
        witness: tuple[Any, ...] = (terms.pay_to, 0)
        call = contract("ExactProxy").encode("settle", permit, authorization.payer, witness, signature)
        return EXACT_PROXY, call
    witness = (terms.pay_to, terms.facilitator, 0)
    amount = terms.amount_atomic if amount_atomic is None else amount_atomic
    return UPTO_PROXY, contract("UptoProxy").encode("settle", permit, amount, authorization.payer, witness, signature)


def settle(
    net: Devnet,
    sender: Account,
    authorization: Authorization,
    amount_atomic: int | None = None,
    *,
    appended: bytes = b"",
    wallet: str | None = None,
) -> str:
    """Settle on chain, directly or through a smart-contract wallet; the transaction's hash."""
    to, data = settle_call(authorization, amount_atomic)
    data += appended
    if wallet is not None:
        to, data = wallet, contract("SmartWallet").encode("execute", to, data)
    return mined(net.chain.send(sender, to=to, data=data))


def settle_together(net: Devnet, sender: Account, authorizations: list[Authorization]) -> str:
    """Settle several exact payments in one transaction of an aggregating contract."""
    calls = [settle_call(authorization) for authorization in authorizations]
    data = contract("Multicall3").encode("tryAggregate", True, calls)
    return mined(net.chain.send(sender, to=MULTICALL3, data=data))


def deploy_wallet(net: Devnet, owner: Account) -> str:
    """A smart-contract wallet of `owner`; its address."""
    wallet = contract("SmartWallet")
    assert wallet.init is not None
    receipt = net.chain.send(owner, to=None, data=wallet.init + bytes.fromhex(owner.address[2:]).rjust(32, b"\0"))
    mined(receipt)
    return str(receipt["contractAddress"])


def mined(receipt: dict[str, Any]) -> str:
    assert receipt["status"] == "0x1", receipt
    return str(receipt["transactionHash"]).lower()
