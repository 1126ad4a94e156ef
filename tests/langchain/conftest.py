"""Models of a wallet that pays on the devnet, and the receipts that its ledger holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.language_models import BaseChatModel

from langchain_opengradient import ChatOpenGradient
from opengradient_devnet import Devnet
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from support.answer_shapes import Shaped
from support.payers import payments_for

MODEL = "openai/gpt-5"

HAS_V3 = hasattr(BaseChatModel, "stream_events")
"""Whether the installed langchain-core has event streams of version 3."""

BETA = "ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"
"""Core warns that v3 event streams are in beta; that they work is what is tested."""


def is_paid(request: Any) -> bool:
    """Whether a request pays: signatures and sessions differ on every run, that there is one does not."""
    return "PAYMENT-SIGNATURE" in request.headers or "X-Upto-Session" in request.headers


def paid_alike(left: Any, right: Any) -> None:
    assert is_paid(left) == is_paid(right)


def pytest_recording_configure(config: Any, vcr: Any) -> None:
    """Lets a cassette tell a paid request from an unpaid one without telling signatures apart."""
    vcr.register_matcher("paid", paid_alike)


def core_error(name: str) -> type[Exception]:
    """Core's typed model error of that name, or what stands for it in a core that is older than it."""
    found = getattr(exceptions, name, None) or getattr(exceptions, "ModelError", None)
    return found or exceptions.LangChainException


@pytest.fixture(scope="session")
def shared_payments(devnets: Callable[..., Devnet], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payments]:
    """One payer with open sessions, for tests that do not look at the money."""
    net = devnets()
    account = net.account(opg="100", approved=True)
    path = tmp_path_factory.mktemp("ledger") / "shared.sqlite"
    payments = Payments(
        network=load_network(f"{net.gateway_url}/network"),
        signer=LocalSigner(account.private_key),
        policy=SpendPolicy(max_per_day="90"),
        ledger=Ledger(f"sqlite:///{path}"),
    )
    yield payments
    payments.ledger.close()


@pytest.fixture
def chat(shared_payments: Payments) -> Iterator[Callable[..., ChatOpenGradient]]:
    """Makes models that share one payer, and closes what they opened."""
    made: list[ChatOpenGradient] = []

    def make(**fields: Any) -> ChatOpenGradient:
        model = ChatOpenGradient(**{"model": MODEL, "payments": shared_payments, **fields})
        made.append(model)
        return model

    yield make
    for model in made:
        model.close()


@pytest.fixture
def model(chat: Callable[..., ChatOpenGradient]) -> ChatOpenGradient:
    """A model with nothing special about it."""
    return chat()


class Payer:
    """A wallet of its own, its ledger, and the models that spend from it."""

    def __init__(self, net: Devnet, directory: Path) -> None:
        self._net = net
        self.account = net.account(opg="10", approved=True)
        self._opg_atomic = net.chain.token_balance(self.account.address)
        self.network = load_network(f"{net.gateway_url}/network")
        self.ledger = Ledger(f"sqlite:///{directory / 'payer.sqlite'}")
        self.payments = Payments(network=self.network, signer=LocalSigner(self.account.private_key), ledger=self.ledger)
        self._made: list[ChatOpenGradient] = []

    def model(self, **fields: Any) -> ChatOpenGradient:
        """A model that this wallet pays for."""
        made = ChatOpenGradient(**{"model": MODEL, "payments": self.payments, **fields})
        self._made.append(made)
        return made

    def receipts(self) -> dict[str, SettlementReceipt]:
        """The receipts in the ledger, by call id: the truth that handlers are compared with."""
        return {receipt.call_id: receipt for receipt in self.ledger.receipts().result()}

    def settle(self) -> int:
        """Have the gateway settle everything, bring the ledger up to date; what the wallet lost meanwhile."""
        self._net.close_sessions()
        Reconciler(self.network, self.ledger).reconcile()
        return self._opg_atomic - self._net.chain.token_balance(self.account.address)

    def close(self) -> None:
        for made in self._made:
            made.close()
        self.ledger.close()


@pytest.fixture
def payer(net: Devnet, tmp_path: Path) -> Iterator[Payer]:
    """A fresh wallet and ledger, for tests that count the money."""
    one = Payer(net, tmp_path)
    yield one
    one.close()


@pytest.fixture(scope="module")
def shaped() -> Shaped:
    """The model behind a gateway, which answers in the shape that a test gives it."""
    return Shaped()


@pytest.fixture(scope="module")
def paying(shaped: Shaped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payments]:
    """What pays the gateway in front of `shaped`."""
    with Devnet(upstream=shaped) as net:
        account = net.account(opg="10", approved=True)
        with payments_for(net, account, tmp_path_factory.mktemp("shapes") / "ledger.sqlite") as opened:
            yield opened
