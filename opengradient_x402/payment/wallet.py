"""The payer's own account: balances, the Permit2 allowance, approving it, cancelling an authorization.

Transactions are sent only by an explicit call of the user, for an amount that the call names: by the wallet itself,
or with a payment, by a facilitator that pays for the gas (x402 extensions `eip2612GasSponsoring` and
`erc20ApprovalGasSponsoring`, version 1).
`Funds` looks at balance and allowance before a first signature; that is advice, and never delays a payment for long.
This module does not pay for model calls and does not know the ledger.
"""

from __future__ import annotations

import shlex
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from opengradient_x402.addresses import address_word, uint_word
from opengradient_x402.chain.eip712 import cancel_authorization_digest, token_permit
from opengradient_x402.chain.questions import (
    ChainReader,
    Question,
    allowance,
    authorization_state,
    balance_of,
    native_balance,
    nonce_used,
    permit_nonce,
)
from opengradient_x402.chain.transactions import prepare_transaction, send_transaction, sign_transaction
from opengradient_x402.effects import Sleep, in_thread
from opengradient_x402.errors import AllowanceMissing, ChainUnavailable, ConfigurationError, InsufficientFunds, RpcError
from opengradient_x402.keys.signer import Signer, sign_typed
from opengradient_x402.money import MAX_UINT256, parse_amount
from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy

if TYPE_CHECKING:
    from opengradient_x402.ledger.authorizations import Authorization
    from opengradient_x402.payment.challenge import Challenge, PaymentTerms

Amount = str | int | Decimal
"""An amount in whole tokens: `"0.5"`, `5`, `Decimal("0.5")`."""

SPONSORED_APPROVAL: Final = "erc20ApprovalGasSponsoring"
SPONSORED_PERMIT: Final = "eip2612GasSponsoring"
_SPONSORED: Final = (SPONSORED_PERMIT, SPONSORED_APPROVAL)
_SPONSORING_VERSION: Final = "1"
_ADVICE_S: Final = 2.0
"""Seconds for the check before a first signature. It is short: the gateway checks too, and users wait."""
_ADVICE_PAUSE_S: Final = 60.0
"""Seconds after a failed check in which payments go without one."""
_LAG_S: Final = 20.0
"""Seconds that nodes behind one URL may be behind each other."""
UNLIMITED: Final = "unlimited"
_MOST_BY_NUMBER: Final = 2**128
"""More than any token has units. An approval without a limit must be asked for by name."""
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
    """One account on one network. Each method waits for the chain, so coroutines call it by `asyncio.to_thread`.

    Raises ChainUnavailable when no node answers.
    """

    def __init__(self, network: Network, signer: Signer, *, chain: ChainReader | None = None) -> None:
        self.network = network
        self.signer = signer
        self._chain = chain if chain is not None else ChainReader.at(network)

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
        wanted = _wanted(self.network, min_allowance, approve_amount, opg_amount)
        return self._chain.ask(_ensure_approval(self.network, self.signer, wanted))

    def cancel(self, authorization: Authorization) -> Cancellation:
        """Burn the nonce of an authorization, so that nobody can settle it. Costs gas.

        The settlement may come first: call `reconcile` to see.
        """
        return self._chain.ask(_cancel(self.network, self.signer, authorization))


class Funds:
    """Whether one wallet can pay what it is about to sign for. Thread-safe: the worst race reads the chain twice.

    Known to suffice, it is not read again until a gateway says otherwise. A node that does not answer is no reason to
    refuse. Reading is done in a thread, for sync and async callers alike.
    """

    def __init__(self, *, network: Network, signer: Signer, policy: SpendPolicy) -> None:
        self._network = network
        self._signer = signer
        self._policy = policy
        self._known_atomic = 0
        self._silent_until_s = 0.0
        self.approval: dict[str, Any] | None = None
        """What travels with the next payment so that it can settle: an approval that the facilitator sends."""

    def check(self, terms: PaymentTerms, challenge: Challenge) -> Future[bool] | None:
        """A look at the chain; None when the funds are known to suffice, or when a look has just failed.

        The result says whether the payment needs a sponsored approval: `sponsor` signs it. The future raises
        InsufficientFunds or AllowanceMissing.
        """
        if terms.amount_atomic <= self._known_atomic or time.monotonic() < self._silent_until_s:
            return None
        return in_thread(lambda: self._look(terms, challenge), name="opengradient-funds")

    def forget(self) -> None:
        """Look at the chain again before the next signature."""
        self._known_atomic, self._silent_until_s = 0, 0.0

    def sponsor(self, terms: PaymentTerms, challenge: Challenge) -> Future[None]:
        """Signs the approval that travels with the next payment. Not before that payment itself may be signed."""
        return in_thread(lambda: self._sponsor(terms, challenge), name="opengradient-sponsored")

    def _look(self, terms: PaymentTerms, challenge: Challenge) -> bool:
        reading = in_thread(
            lambda: require_funds(self._network, self._signer.address, terms), name="opengradient-funds-read"
        )
        try:
            reading.result(_ADVICE_S)
        except (ChainUnavailable, TimeoutError):
            self._silent_until_s = time.monotonic() + _ADVICE_PAUSE_S
            return False
        except AllowanceMissing:
            self.approval = None
            if not self._may_sponsor(terms, challenge):
                raise
            return True  # the allowance comes with the settlement: the next payment looks again
        self._known_atomic, self.approval = terms.amount_atomic, None
        return False

    def _may_sponsor(self, terms: PaymentTerms, challenge: Challenge) -> bool:
        """Only if the user asked for one by name, and the gateway offers it."""
        allowed = self._policy.sponsored_approval_atomic(self._network.asset) or 0
        return allowed >= terms.amount_atomic and not challenge.extensions.keys().isdisjoint(_SPONSORED)

    def _sponsor(self, terms: PaymentTerms, challenge: Challenge) -> None:
        self.approval = self._sponsored(terms, challenge)
        if self.approval is None:
            require_funds(self._network, self._signer.address, terms)  # raises AllowanceMissing, as `check` found

    def _sponsored(self, terms: PaymentTerms, challenge: Challenge) -> dict[str, Any] | None:
        """A permit comes first: it allows this payment alone, and lives no longer."""
        allowed = cast("int", self._policy.sponsored_approval_atomic(self._network.asset))
        with ChainReader.at(self._network) as chain:
            if SPONSORED_PERMIT in challenge.extensions:
                with suppress(RpcError):  # not every token has permits
                    return chain.ask(_sponsored_permit(self._network, self._signer, terms))
            if SPONSORED_APPROVAL in challenge.extensions:
                return chain.ask(_sponsored_approval(self._network, self._signer, amount_atomic=allowed))
        return None


def require_funds(network: Network, payer: str, terms: PaymentTerms) -> None:
    """Look on chain whether a payment can be settled at all, before it is signed.

    Raises InsufficientFunds, AllowanceMissing (Permit2 payments), ChainUnavailable.
    """
    with ChainReader.at(network) as chain:
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
        whole = -(-terms.amount_atomic // 10**asset.decimals)
        option = f" --network {shlex.quote(network.given_as)}" if network.given_as else ""
        raise AllowanceMissing(
            f"Permit2 may move {asset.format(allowed)} of {payer} on {network.name}; the payment authorizes "
            f"{asset.format(terms.amount_atomic)}. Nothing was signed. Run `opengradient-x402 approve {whole}{option}` "
            f"once, or call `ensure_opg_approval(min_allowance={whole})`."
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
        raise ConfigurationError(
            f'Say how much to allow: `min_allowance="5"` ({network.asset.symbol}). Nothing was sent.'
        )
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
    data = _approve_call(network, wanted.approve_atomic)
    tx_hash = yield from send_transaction(network, signer, to=network.asset.address, data=data, what="The approval")
    after = yield from _allowance_after(network, signer.address, wanted, tx_hash)
    return Approval(allowance_before_atomic=before, allowance_after_atomic=after, tx_hash=tx_hash)


def _allowance_after(network: Network, owner: str, wanted: _Wanted, tx_hash: str) -> Question[int]:
    """The allowance, when the node knows of the approval: it may be a block behind the one that mined it."""
    waited_s, pause_s, shown = 0.0, 0.05, "no allowance"
    until = time.monotonic() + _LAG_S
    while waited_s < _LAG_S and time.monotonic() < until:
        try:
            after = yield from _allowance(network, owner)
        except ChainUnavailable as exc:
            shown = exc.message
        else:
            if after >= wanted.min_atomic:
                return after
            shown = network.asset.format(after)
        yield Sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, 2.0)
    raise ChainUnavailable(
        f"The approval is mined (transaction {tx_hash}), and the node still reports {shown}. No tokens moved. "
        "The approval holds: nodes can be behind. Ask for the balance later, or use another node."
    )


def _approve_call(network: Network, amount_atomic: int) -> bytes:
    return _APPROVE + address_word(network.permit2) + uint_word(amount_atomic)


def _sponsored_approval(network: Network, signer: Signer, *, amount_atomic: int) -> Question[dict[str, Any]]:
    """A payment's `extensions`: a signed transaction that lets Permit2 move `amount_atomic`. It is not sent here."""
    data = _approve_call(network, amount_atomic)
    unsigned = yield from prepare_transaction(network, signer.address, to=network.asset.address, data=data)
    return {
        SPONSORED_APPROVAL: {
            "info": {
                "from": signer.address,
                "asset": network.asset.address,
                "spender": network.permit2,
                "amount": str(amount_atomic),
                "signedTransaction": "0x" + sign_transaction(unsigned, signer=signer).raw.hex(),
                "version": _SPONSORING_VERSION,
            }
        }
    }


def _sponsored_permit(network: Network, signer: Signer, terms: PaymentTerms) -> Question[dict[str, Any]]:
    """A payment's `extensions`: a permit for the amount of this payment, which the x402 proxies demand to be equal."""
    nonce = yield from permit_nonce(network.asset.address, signer.address)
    deadline_s = int(time.time()) + terms.max_timeout_s
    digest, document = token_permit(
        network, owner=signer.address, amount_atomic=terms.amount_atomic, nonce=nonce, deadline_s=deadline_s
    )
    return {
        SPONSORED_PERMIT: {
            "info": {
                "from": signer.address,
                "asset": network.asset.address,
                "spender": network.permit2,
                "amount": str(terms.amount_atomic),
                "nonce": str(nonce),
                "deadline": str(deadline_s),
                "signature": "0x" + sign_typed(signer, digest, lambda: document).hex(),
                "version": _SPONSORING_VERSION,
            }
        }
    }


def _cancel(network: Network, signer: Signer, authorization: Authorization) -> Question[Cancellation]:
    if authorization.payer != signer.address:
        raise ConfigurationError(
            f"The authorization is {authorization.payer}'s, and this wallet is {signer.address}: only the payer can "
            "cancel. Nothing was sent."
        )
    if authorization.terms.scheme == "batch-settlement":
        raise ConfigurationError(
            "A voucher of a payment channel cannot be cancelled: the gateway may claim what it allows. Nothing was "
            "sent. `opengradient-x402 channels withdraw` takes back what is left in the channel."
        )
    if authorization.asset != network.asset.address:
        raise ConfigurationError(
            f"The authorization pays in the token {authorization.asset}, and {network.name} in {network.asset.symbol} "
            f"{network.asset.address}. Nothing was sent. Name the network of that token."
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
    return _INVALIDATE_NONCES + uint_word(authorization.nonce >> 8) + uint_word(1 << (authorization.nonce & 255))


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
    numbers = uint_word(authorization.nonce) + uint_word(signature[64])  # the nonce, and v before r and s
    return _CANCEL_AUTHORIZATION + address_word(authorization.payer) + numbers + signature[:64]
