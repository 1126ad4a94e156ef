"""LangChain's standard integration tests over real payments, every switch on, at each kind of gateway."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from langchain_tests import conftest as suite_conftest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as suite
from vcr import VCR

from langchain_opengradient import ChatOpenGradient
from opengradient_x402.payment.payments import Payments
from support.payers import payments_for

from .conftest import BETA, paid_alike
from .media import PDF, PNG, WAV

BASE_VCR_CONFIG: dict[str, Any] = (
    suite_conftest.base_vcr_config()
    if hasattr(suite_conftest, "base_vcr_config")
    else {"record_mode": "once", "allow_playback_repeats": True, "path_transformer": VCR.ensure_suffix(".yaml")}
)

pytestmark = pytest.mark.filterwarnings(BETA)


@pytest.fixture(scope="module")
def vcr_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        **BASE_VCR_CONFIG,
        "match_on": ["method", "uri", "paid"],
        "cassette_library_dir": str(tmp_path_factory.mktemp("cassettes")),
    }


@pytest.fixture(scope="class")
def payer(request: pytest.FixtureRequest, devnets: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payments]:
    """The wallet that pays for all tests of a class, at the gateway of that class."""
    net = devnets(**request.cls.gateway)
    account = net.account(opg="100", approved=True)
    with payments_for(net, account, tmp_path_factory.mktemp("ledger") / "l.sqlite") as opened:
        yield opened


@pytest.fixture(scope="class")
def vcr_cassette_dir(request: pytest.FixtureRequest, vcr_config: dict[str, Any], payer: Payments) -> str:
    """Records the paid stream that the suite's benchmark then plays back."""
    recorder = VCR()
    recorder.register_matcher("paid", paid_alike)
    with ChatOpenGradient(model="openai/gpt-5", payments=payer) as model:
        model.invoke("Open the session, so that what is recorded is paid by it.")
    with (
        ChatOpenGradient(model="openai/gpt-5", payments=payer) as model,
        recorder.use_cassette(f"{request.cls.__name__}.test_stream_time", **vcr_config),
    ):
        list(model.stream("Write a story about a cat."))
    return str(vcr_config["cassette_library_dir"])


class TestChatOpenGradientStandardIntegration(ChatModelIntegrationTests):
    gateway: ClassVar[dict[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _devnet(self, payer: Payments, monkeypatch: pytest.MonkeyPatch) -> None:
        self._payments = payer
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "opengradient-integrations")
        media = {".png": PNG, ".jpg": PNG, ".pdf": PDF, ".wav": WAV}
        monkeypatch.setattr(suite.httpx, "get", lambda url, **_: httpx.Response(200, content=media[Path(url).suffix]))

    @property
    def chat_model_class(self) -> type[ChatOpenGradient]:
        return ChatOpenGradient

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "openai/gpt-5", "payments": self._payments}

    @property
    def model_override_value(self) -> str:
        return "anthropic/claude-sonnet-4-6"

    has_tool_calling = True
    has_tool_choice = True
    has_structured_output = True
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    returns_usage_metadata = True
    supports_model_override = True
    enable_vcr_tests = True


class TestChatOpenGradientAtTheGatewayOfApril(TestChatOpenGradientStandardIntegration):
    gateway: ClassVar[dict[str, str]] = {"behaves_like": "gateway-2026-04"}
