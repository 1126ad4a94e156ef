"""The payer's own account: balances, the Permit2 allowance, approving it, cancelling an authorization.

Transactions are sent only by an explicit call of the user, for an amount that the call names. Does not pay
for model calls and does not know the ledger. The questions are generators (`_balance`, `_approve`, ...), and
`Wallet` and `AsyncWallet` ask them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

from opengradient_x402.addresses import address_word
from opengradient_x402.chain.eip712 import cancel_authorization_digest
from opengradient_x402.chain.questions import (
    AsyncChainReader,
    ChainReader,
    Question,
    allowance,
    authorization_state,
    balance_of,
    native_balance,
    nonce_used,
)
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.errors import (
    AllowanceMissing,
    ConfigurationError,
    InsufficientFunds,
)
from opengradient_x402.money import MAX_UINT256, parse_amount
from opengradient_x402.networks import Network
from opengradient_x402.signer import Signer

if TYPE_CHECKING:
    from opengradient_x402.ledger.authorizations import Authorization
    from opengradient_x402.payment.challenge import PaymentTerms

Amount = str | int | Decimal
"""An amount in whole tokens: `"0.5"`, `5`, `Decimal("0.5")`."""

UNLIMITED: Final = "unlimited"
_MOST_BY_NUMBER: Final = 2**128
"""More than any token has units. Whoever wants an approval without a limit has to say so by name."""
_APPROVE: Final = bytes.fromhex("095ea7b3")  # approve(address,uint256), ERC-20
_INVALIDATE_NONCES: Final = bytes.fromhex("3ff9dcb1")  # invalidateUnorderedNonces(uint256,uint256), Permit2
_CANCEL_AUTHORIZATION: Final = bytes.fromhex("5a049a70")  # cancelAuthorization(...), EIP-3009


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What `ensure_opg_approval` found and did. `tx_hash` is None when nothing had to be sent."""

    allowance_before_atomic: int
    allowance_after_atomic: int
    tx_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """What `cancel` did. `tx_hash` is None when the nonce was used already: reconcile to see by what."""

    tx_hash: str | None


class Wallet:
    """One account on one network, for threads. See `AsyncWallet` for coroutines."""

    def __init__(self, network: Network, signer: Signer, *, chain: ChainReader | None = None) -> None:
        self.network = network
        self.signer = signer
        self._chain = chain if chain is not None else ChainReader(network.rpc_url, network.chain_id)

    @property
    def address(self) -> str:
        """The account."""
        return self.signer.address

    def balance(self) -> int:
        """Tokens, in atomic units."""
        return self._chain.ask(balance_of(self.network.asset.address, self.address))

    def allowance(self) -> int:
        """How much Permit2 may move, in atomic units."""
        return self._chain.ask(_allowance(self.network, self.address))

    def native_balance(self) -> int:
        """Gas coins, in wei."""
        return self._chain.ask(native_balance(self.address))

    def ensure_opg_approval(
        self,
        min_allowance: Amount | None = None,
        approve_amount: Amount | Literal["unlimited"] | None = None,
        *,
        opg_amount: Amount | None = None,
    ) -> Approval:
        """Let Permit2 move at least `min_allowance` tokens; sends a transaction only when it may move less.

        `approve_amount` is what is approved then: twice `min_allowance` when not given, and never unlimited
        unless it is `"unlimited"`. `opg_amount` is the older form: both amounts in one. Amounts are whole
        tokens. Raises InsufficientFunds when there is no gas for it, ChainUnavailable.
        """
        return self._chain.ask(
            _ensure_approval(
                self.network, self.signer, _wanted(self.network, min_allowance, approve_amount, opg_amount)
            )
        )

    def cancel(self, authorization: Authorization) -> Cancellation:
        """Burn the nonce of an authorization, so that nobody can settle it. Costs gas.

        The settlement may come first: reconcile afterwards.
        """
        return self._chain.ask(_cancel(self.network, self.signer, authorization))


class AsyncWallet:
    """One account on one network, for coroutines. See `Wallet`."""

    def __init__(self, network: Network, signer: Signer, *, chain: AsyncChainReader | None = None) -> None:
        self.network = network
        self.signer = signer
        self._chain = chain if chain is not None else AsyncChainReader(network.rpc_url, network.chain_id)

    @property
    def address(self) -> str:
        """The account."""
        return self.signer.address

    async def balance(self) -> int:
        """Tokens, in atomic units."""
        return await self._chain.ask(balance_of(self.network.asset.address, self.address))

    async def allowance(self) -> int:
        """How much Permit2 may move, in atomic units."""
        return await self._chain.ask(_allowance(self.network, self.address))

    async def native_balance(self) -> int:
        """Gas coins, in wei."""
        return await self._chain.ask(native_balance(self.address))

    async def ensure_opg_approval(
        self,
        min_allowance: Amount | None = None,
        approve_amount: Amount | Literal["unlimited"] | None = None,
        *,
        opg_amount: Amount | None = None,
    ) -> Approval:
        """As `Wallet.ensure_opg_approval`."""
        return await self._chain.ask(
            _ensure_approval(
                self.network, self.signer, _wanted(self.network, min_allowance, approve_amount, opg_amount)
            )
        )

    async def cancel(self, authorization: Authorization) -> Cancellation:
        """As `Wallet.cancel`."""
        return await self._chain.ask(_cancel(self.network, self.signer, authorization))


def require_funds(network: Network, payer: str, terms: PaymentTerms) -> None:
    """Look on chain whether a payment can be settled at all, before it is signed.

    Raises InsufficientFunds, AllowanceMissing (Permit2 payments), ChainUnavailable.
    """
    with ChainReader(network.rpc_url, network.chain_id) as chain:
        chain.ask(_require_funds(network, payer, terms))


def _require_funds(network: Network, payer: str, terms: PaymentTerms) -> Question[None]:
    asset = network.asset
    balance = yield from balance_of(asset.address, payer)
    if balance < terms.amount_atomic:
        faucet = f" A faucet: {network.faucet_url}" if network.faucet_url else ""
        raise InsufficientFunds(
            f"{payer} holds {asset.format(balance)} on {network.name}; the payment authorizes "
            f"{asset.format(terms.amount_atomic)}. Nothing was signed. Send {asset.symbol} to it.{faucet}"
        )
    if terms.transfer_method == "eip3009":
        return
    allowed = yield from _allowance(network, payer)
    if allowed < terms.amount_atomic:
        raise AllowanceMissing(
            f"Permit2 may move {asset.format(allowed)} of {payer} on {network.name}; the payment authorizes "
            f"{asset.format(terms.amount_atomic)}. Nothing was signed. Run `opengradient-x402 approve` once, or "
            "call `ensure_opg_approval(min_allowance=…)`."
        )


def _allowance(network: Network, owner: str) -> Question[int]:
    return (yield from allowance(network.asset.address, owner, network.permit2))


@dataclass(frozen=True, slots=True)
class _Wanted:
    min_atomic: int
    approve_atomic: int


def _wanted(
    network: Network, min_allowance: Amount | None, approve_amount: Amount | None, opg_amount: Amount | None
) -> _Wanted:
    if opg_amount is not None:
        if min_allowance is not None or approve_amount is not None:
            raise ConfigurationError(
                "`opg_amount` is the older form of `min_allowance` and `approve_amount`: give one form. "
                "Nothing was sent."
            )
        min_allowance = approve_amount = opg_amount
    if min_allowance is None:
        raise ConfigurationError('Say how much to allow: `min_allowance="5"` (OPG). Nothing was sent.')
    min_atomic = _parsed("min_allowance", min_allowance, network)
    if approve_amount == UNLIMITED:
        return _Wanted(min_atomic, MAX_UINT256)
    approve_atomic = 2 * min_atomic if approve_amount is None else _parsed("approve_amount", approve_amount, network)
    if approve_atomic > _MOST_BY_NUMBER:
        raise ConfigurationError(
            f"An approval of {network.asset.format(approve_atomic)} is one without a limit: tokens treat it as such. "
            'Nothing was sent. Name a smaller amount, or `approve_amount="unlimited"`.'
        )
    if approve_atomic < min_atomic:
        raise ConfigurationError(
            f"`approve_amount` ({approve_amount}) is less than `min_allowance` ({min_allowance}): the approval "
            "would not be enough. Nothing was sent."
        )
    return _Wanted(min_atomic, approve_atomic)


def _parsed(name: str, amount: Amount, network: Network) -> int:
    try:
        return parse_amount(amount, decimals=network.asset.decimals)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"`{name}`: {exc} Nothing was sent.") from exc


def _ensure_approval(network: Network, signer: Signer, wanted: _Wanted) -> Question[Approval]:
    before = yield from _allowance(network, signer.address)
    if before >= wanted.min_atomic:
        return Approval(allowance_before_atomic=before, allowance_after_atomic=before, tx_hash=None)
    data = _APPROVE + address_word(network.permit2) + _word(wanted.approve_atomic)
    tx_hash = yield from send_transaction(network, signer, to=network.asset.address, data=data, what="The approval")
    after = yield from _allowance(network, signer.address)
    return Approval(allowance_before_atomic=before, allowance_after_atomic=after, tx_hash=tx_hash)


def _cancel(network: Network, signer: Signer, authorization: Authorization) -> Question[Cancellation]:
    if authorization.payer != signer.address:
        raise ConfigurationError(
            f"The authorization is {authorization.payer}'s, and this wallet is {signer.address}: only the payer can "
            "cancel. Nothing was sent."
        )
    if authorization.transfer_method == "eip3009":
        is_used = yield from authorization_state(authorization.asset, authorization.payer, authorization.nonce)
        to, data = authorization.asset, _cancel_authorization_call(network, signer, authorization)
    else:
        is_used = yield from nonce_used(network.permit2, authorization.payer, authorization.nonce)
        to, data = network.permit2, _invalidate_nonce_call(authorization)
    if is_used:
        return Cancellation(tx_hash=None)
    return Cancellation(
        tx_hash=(yield from send_transaction(network, signer, to=to, data=data, what="The cancellation"))
    )


def _invalidate_nonce_call(authorization: Authorization) -> bytes:
    return _INVALIDATE_NONCES + _word(authorization.nonce >> 8) + _word(1 << (authorization.nonce & 255))


def _cancel_authorization_call(network: Network, signer: Signer, authorization: Authorization) -> bytes:
    signature = signer.sign_digest(
        cancel_authorization_digest(
            chain_id=network.chain_id,
            token=authorization.asset,
            token_name=network.asset.name,
            token_version=network.asset.version,
            payer=authorization.payer,
            nonce=authorization.nonce,
        )
    )
    r, s, v = signature[:32], signature[32:64], signature[64]
    return _CANCEL_AUTHORIZATION + address_word(authorization.payer) + _word(authorization.nonce) + _word(v) + r + s


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
