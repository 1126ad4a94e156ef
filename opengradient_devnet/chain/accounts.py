"""Accounts of the devnet: those of its operators, and funded wallets for its users.

All keys are random and new for every run. `Wallets` remembers which wallets it made. On a live chain id it serves
only those, because a signature that another wallet gives here is valid on the real chain, too.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field

from eth_keys.datatypes import PrivateKey

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.contracts import PERMIT2, contract
from opengradient_devnet.money import Token

# Base and Base Sepolia, where OpenGradient's gateways take payments.
LIVE_CHAIN_IDS = frozenset({8453, 84532})
WALLET_GAS_WEI = 10**18
_UNLIMITED = 2**256 - 1


class WalletRefused(Exception):
    """The devnet will not fund or serve this address; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An address and its private key (0x-hex, kept out of repr)."""

    address: str
    private_key: str = field(repr=False)


def new_account() -> Account:
    """A random account with nothing in it."""
    key = PrivateKey(secrets.token_bytes(32))
    return Account(address=key.public_key.to_checksum_address(), private_key=key.to_hex())


class Wallets:
    """Makes and funds wallets on one chain. Usable from any thread."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._is_live_chain_id = chain.chain_id in LIVE_CHAIN_IDS
        self._lock = threading.Lock()
        self._made: set[str] = set()

    @property
    def token(self) -> Token:
        """What wallets are funded with."""
        return self._chain.token

    def make(self, *, opg: str | int = "10", approved: bool = False) -> Account:
        """A fresh wallet with gas money and `opg` whole tokens; `approved` also lets Permit2 move them."""
        account = new_account()
        self._chain.fund(account.address, token_atomic=self.token.atomic(opg), native_wei=WALLET_GAS_WEI)
        if approved:
            approve = contract("OPG").encode("approve", PERMIT2, _UNLIMITED)
            self._chain.send(account, to=self.token.address, data=approve)
        with self._lock:
            self._made.add(account.address.lower())
        return account

    def fund(self, address: str, *, opg: str | int) -> None:
        """Give gas money and `opg` whole tokens to any address that may be served here; raises WalletRefused."""
        if not self.may_be_served(address):
            raise WalletRefused(
                f"{address} was not made by this devnet. It runs under the live chain id "
                f"{self._chain.chain_id}, where a signature of that wallet would be valid on the real chain: "
                "ask POST /accounts for a wallet instead."
            )
        self._chain.fund(address, token_atomic=self.token.atomic(opg), native_wei=WALLET_GAS_WEI)

    def may_be_served(self, address: str) -> bool:
        """True, unless the chain id is a live one and somebody else made this wallet."""
        if not self._is_live_chain_id:
            return True
        with self._lock:
            return address.lower() in self._made
