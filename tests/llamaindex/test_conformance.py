"""The reusable suite, in full, for `OpenGradient`: every call is paid for on the devnet.

The scripted server stands behind a second devnet, as its upstream: what it says reaches the model through a paid
gateway, chunk by chunk. A relay in front of that gateway sees when the model hangs up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from llama_index_opengradient import OpenGradient
from llamaindex.suite import FunctionCallingLLMTests, ScriptedServer
from opengradient_devnet import Account, Devnet
from opengradient_devnet.faults import NeverSettle
from support.relay import Relay


# The scripted server does not obey a forced tool_choice; users are warned of that (test_request.py).
@pytest.mark.filterwarnings("ignore:tool_choice=:opengradient_x402.gateway.request.GatewayLimitation")
class TestOpenGradient(FunctionCallingLLMTests):
    gateway: ClassVar[dict[str, str]] = {}
    net: Devnet
    payer: Account
    relay: Relay | None = None

    @pytest.fixture(autouse=True)
    def _pay_on_the_devnet(self, paid_net: Devnet, payer: Account) -> None:
        self.net, self.payer = paid_net, payer

    @property
    def llm_class(self) -> type[OpenGradient]:
        return OpenGradient

    @property
    def llm_params(self) -> dict[str, Any]:
        return {
            "model": "openai/gpt-5",
            "private_key": self.payer.private_key,
            "network": f"{self.net.gateway_url}/network",
        }

    @property
    def params_missing_from_pickle(self) -> dict[str, Any]:
        return {"private_key": self.payer.private_key}

    @pytest.fixture(scope="class")
    @classmethod
    def paid_net(cls, devnets: Any) -> Iterator[Devnet]:
        yield devnets(**cls.gateway)
        devnets.forget_sessions()

    @pytest.fixture(scope="class")
    @classmethod
    def payer(cls, paid_net: Devnet) -> Account:
        return paid_net.account(opg="100", approved=True)

    @pytest.fixture(scope="class")
    @classmethod
    def scripted_net(cls, scripted_server: ScriptedServer) -> Iterator[tuple[Devnet, Account]]:
        with Devnet(upstream=f"openai:{scripted_server.url}", **cls.gateway) as net:
            yield net, net.account(opg="100", approved=True)
            # One session per test has been left open; what they settle for is other tests' business, and takes long.
            net.faults.inject(NeverSettle(), times=None)

    @pytest.fixture
    def scripted_llm(self, scripted_net: tuple[Devnet, Account], script: ScriptedServer) -> Iterator[OpenGradient]:
        self.net, self.payer = scripted_net
        with Relay(self.net.gateway_url) as self.relay:
            llm = self.make_llm(base_url=self.relay.url)
            yield llm
            llm.close()

    def call_was_dropped(self, script: ScriptedServer) -> bool:
        """Gateways finish and charge a call that is not a stream: only the relay sees that nobody waits for it."""
        script.release()
        return self.relay is not None and self.relay.client_hung_up()


@pytest.mark.soak  # as long as the suite above and a minute more: each failure is told after 1.3 s
class TestOpenGradientAtTheGatewayOfApril(TestOpenGradient):
    gateway: ClassVar[dict[str, str]] = {"behaves_like": "gateway-2026-04"}
    tool_calls_come_whole = True
