"""Every exception that the package raises on purpose. Each one says what happened to the money.

    OpenGradientError
    ├── NotPaid                        nothing was charged by this call
    │   ├── ConfigurationError         (also a ValueError)
    │   │   ├── InvalidPrivateKey
    │   │   ├── UnknownNetwork
    │   │   ├── UnknownModel
    │   │   ├── InsecureEndpoint
    │   │   └── BundleUnreadable       the file is no audit bundle, or was changed
    │   ├── ChallengeInvalid           the gateway's 402 does not follow the protocol
    │   ├── PolicyRefused              the gateway's terms are not acceptable to the SpendPolicy
    │   │   ├── BudgetExceeded
    │   │   └── PaymentNotApproved     a person refused, or did not answer in time
    │   ├── InsufficientFunds
    │   ├── AllowanceMissing
    │   ├── GatewayUnreachable
    │   ├── ChainUnavailable           an RPC node did not answer a question
    │   │   └── RpcError               it answered with an error
    │   ├── LedgerUnavailable
    │   └── CallKnown                  a call with this id was made before, or is being made
    ├── PaymentOutcomeUnknown          a signature left; only the chain can say whether it was used
    └── PaidButFailed                  the call will be charged (up to the authorized amount)
        ├── GatewayError
        ├── StreamInterrupted
        ├── ResponseInvalid
        ├── ProofRejected
        └── AnswerLost             the process that got the answer ended before it was kept

Does not know where errors come from. A message never holds a key, a signature or a session id: exceptions
end up in logs, traces and pickles.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opengradient_x402.ledger.receipts import SettlementReceipt

ErrorKind = Literal[
    "authentication",
    "chain",
    "configuration",
    "connection",
    "content_filter",
    "context_length",
    "invalid_request",
    "ledger",
    "model_not_found",
    "payment",
    "policy",
    "proof",
    "provider",
    "rate_limit",
    "timeout",
]


class MoneyOutcome(StrEnum):
    """What an error means for the money."""

    NOT_PAID = "not_paid"
    UNKNOWN = "unknown"
    PAID = "paid"


class OpenGradientError(Exception):
    """The root of all errors: what happened to the money, and the receipt as soon as there is one.

    `is_retryable` says that calling again is safe for the money *and* could help. After a signature has
    left it is False, for every cause.
    """

    money: MoneyOutcome = MoneyOutcome.UNKNOWN
    kind: ErrorKind = "provider"
    is_retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        receipt: SettlementReceipt | None = None,
        call_id: str | None = None,
        status_code: int | None = None,
        kind: ErrorKind | None = None,
        is_retryable: bool | None = None,
    ) -> None:
        # One positional argument: pickle and copy call `cls(*args)` and then restore __dict__.
        super().__init__(message)
        self.receipt = receipt
        self.call_id = call_id
        self.status_code = status_code
        if kind is not None:
            self.kind = kind
        if is_retryable is not None:
            self.is_retryable = is_retryable

    @property
    def message(self) -> str:
        """What happened, what it means for the money, what to do."""
        return str(self.args[0])


class NotPaid(OpenGradientError):
    """This call was not charged: no signature of it left the process, or the chain says so."""

    money = MoneyOutcome.NOT_PAID


class ConfigurationError(NotPaid, ValueError):
    """A value given by the user, or by the environment, cannot be used."""

    kind: ErrorKind = "configuration"


class InvalidPrivateKey(ConfigurationError):
    """The private key is missing or is not a secp256k1 key. The message never shows it."""

    kind: ErrorKind = "authentication"


class UnknownNetwork(ConfigurationError):
    """No network of that name, or its description cannot be read."""


class UnknownModel(ConfigurationError):
    """No model of that name."""

    kind: ErrorKind = "model_not_found"


class InsecureEndpoint(ConfigurationError):
    """An endpoint that money must not be sent to: plain http off loopback, or an unexpected address."""


class BundleUnreadable(ConfigurationError):
    """The file is not an audit bundle, or not the bytes of one any more."""


class ChallengeInvalid(NotPaid):
    """A PAYMENT-REQUIRED header that does not follow x402 v2, or asks for something unsafe by design."""

    kind: ErrorKind = "payment"


class PolicyRefused(NotPaid):
    """The terms are well-formed, and the SpendPolicy does not accept them."""

    kind: ErrorKind = "policy"


class BudgetExceeded(PolicyRefused):
    """The authorization would take spending above a budget."""


class PaymentNotApproved(PolicyRefused):
    """A person refused the payment, or did not answer in time (`SpendPolicy.approve_above`)."""


class InsufficientFunds(NotPaid):
    """The payer's balance (of the token, or of the gas coin) is too small."""

    kind: ErrorKind = "payment"


class AllowanceMissing(NotPaid):
    """The payer has not allowed Permit2 to move enough of the token."""

    kind: ErrorKind = "payment"


class GatewayUnreachable(NotPaid):
    """No connection to the gateway was made before anything was signed."""

    kind: ErrorKind = "connection"
    is_retryable = True


class ChainUnavailable(NotPaid):
    """An RPC node did not answer, or answered with an error."""

    kind: ErrorKind = "chain"
    is_retryable = True


class RpcError(ChainUnavailable):
    """An RPC node answered with an error. `code` is JSON-RPC's or HTTP's, `data` holds revert bytes."""

    is_retryable = False

    def __init__(
        self, message: str, *, code: int | None = None, data: str | None = None, call_id: str | None = None
    ) -> None:
        super().__init__(message, call_id=call_id)
        self.code = code
        self.data = data


class LedgerUnavailable(NotPaid):
    """The ledger cannot be written; without it nothing is signed."""

    kind: ErrorKind = "ledger"


class CallKnown(NotPaid):
    """A call was to be made under a given id, and the ledger has that call already: it was, or is being, made."""

    kind: ErrorKind = "payment"


class PaymentOutcomeUnknown(OpenGradientError):
    """A signature was sent, and no answer says what became of it. Reconcile before you call again."""

    kind: ErrorKind = "connection"


class PaidButFailed(OpenGradientError):
    """The payment was accepted, and the call did not give what was paid for."""

    money = MoneyOutcome.PAID


class GatewayError(PaidButFailed):
    """The gateway, or the provider behind it, answered with an error after the payment was accepted."""


class StreamInterrupted(PaidButFailed):
    """The stream ended before its end marker: the text so far is incomplete."""

    kind: ErrorKind = "connection"


class ResponseInvalid(PaidButFailed):
    """The response cannot be read as a chat completion."""


class ProofRejected(PaidButFailed):
    """The enclave's signature, or a settlement proof, does not hold."""

    kind: ErrorKind = "proof"


class AnswerLost(PaidButFailed):
    """The row of a table was paid, and its answer was lost with the process that got it."""
