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
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.networks import Network, load_network
from opengradient_x402.payment.challenge import PaymentTerms, parse_challenge
from opengradient_x402.payment.permits import signed_payload, terms_to_sign

_calls = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An authorization and the one signature under it."""

    authorization: Authorization
    accepted: PaymentTerms
    signature: bytes


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
    ) -> Signed:
        offer = {
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
        document = {"x402Version": 2, "resource": {"url": "http://127.0.0.1"}, "accepts": [offer]}
        challenge = parse_challenge(base64.b64encode(json.dumps(document).encode()).decode())
        number = next(_calls)
        authorization = Authorization(
            id=f"auth_{number}",
            call_id=f"call_{number}",
            network=self.network.caip2,
            payer=self.signer.address,
            nonce=self.signer.nonce_for(f"call-{number}") if nonce is None else nonce,
            endpoint="http://127.0.0.1/v1/chat/completions",
            model="openai/gpt-5",
            settlement_mode="batch",
            signed=(terms_to_sign(challenge.terms[0], network=self.network, now_s=int(time.time()) - ago_s),),
        )
        payload = signed_payload(authorization, accepted=challenge.terms[0], signer=self.signer, network=self.network)
        return Signed(
            authorization=authorization, accepted=challenge.terms[0], signature=bytes.fromhex(payload["signature"][2:])
        )


def new_payer(net: Devnet, *, opg: str = "10", approved: bool = True) -> Payer:
    return Payer(account=net.account(opg=opg, approved=approved), network=load_network(f"{net.gateway_url}/network"))


def settle_call(signed: Signed, amount_atomic: int | None = None) -> tuple[str, bytes]:
    """Where to send a settlement, and its calldata."""
    authorization, signature = signed.authorization, signed.signature
    terms = authorization.terms
    if terms.transfer_method == "eip3009":
        call = contract("OPG").encode(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            authorization.payer,
            terms.payee,
            terms.amount_atomic,
            0,
            terms.deadline,
            authorization.nonce.to_bytes(32, "big"),
            signature,
        )
        return OPG, call
    permit = ((terms.asset, terms.amount_atomic), authorization.nonce, terms.deadline)
    if terms.scheme == "exact":
        witness: tuple[Any, ...] = (terms.payee, 0)
        call = contract("ExactProxy").encode("settle", permit, authorization.payer, witness, signature)
        return EXACT_PROXY, call
    witness = (terms.payee, terms.facilitator, 0)
    amount = terms.amount_atomic if amount_atomic is None else amount_atomic
    return UPTO_PROXY, contract("UptoProxy").encode("settle", permit, amount, authorization.payer, witness, signature)


def settle(
    net: Devnet,
    sender: Account,
    signed: Signed,
    amount_atomic: int | None = None,
    *,
    appended: bytes = b"",
    wallet: str | None = None,
) -> str:
    """Settle on chain, directly or through a smart-contract wallet; the transaction's hash."""
    to, data = settle_call(signed, amount_atomic)
    data += appended
    if wallet is not None:
        to, data = wallet, contract("SmartWallet").encode("execute", to, data)
    return mined(net.chain.send(sender, to=to, data=data))


def settle_together(net: Devnet, sender: Account, signed: list[Signed]) -> str:
    """Settle several exact payments in one transaction of an aggregating contract."""
    calls = [settle_call(one) for one in signed]
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
