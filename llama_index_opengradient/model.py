"""The fields of a paid model, its metadata, and how it is dumped, copied and pickled.

`PaidModel` holds what is the same whatever is asked: model and sampling, wallet, network, limits; metadata; the
clients that it opens at first use; pickling, copying, dumping. It does not know messages or responses, and makes
no call: `llm` does.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import httpx
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import BaseModel, WithJsonSchema

from llama_index_opengradient.events import expect_calls
from opengradient_x402.gateway.clients import Connections, Route
from opengradient_x402.gateway.request import GATEWAY_MAX_TOKENS
from opengradient_x402.http.time_limits import TimeLimits, Timeout
from opengradient_x402.keys.signer import with_hidden_secrets
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.shared import OF_THE_PROCESS
from opengradient_x402.models import find_model
from opengradient_x402.networks import DescribedNetwork, Network, load_network
from opengradient_x402.parameters import CHAT_MEMBERS, check_call, check_names, checked_base_url, checked_sender
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.proofs.attestation import VerifyTee, VerifyTeeName
from opengradient_x402.settings import Settings
from opengradient_x402.settlement_mode import SettlementMode

if TYPE_CHECKING:
    from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
    from opengradient_x402.payment.payments import Payments

_LIVE_OR_SECRET: Final = ("rpc_url", "web3", "payments", "http_client", "async_http_client", "default_headers")
_OLDER_NAMES: Final = {"x402_settlement_mode": "settlement_mode", "api_key": "private_key", "api_base": "base_url"}
_OF_A_CALL: Final = CHAT_MEMBERS.union(
    ("model", "web_search", "audio_config", "strict", "settlement_mode", "x402_settlement_mode", "timeout"),
    ("headers", "extra_headers", "extra_query", "extra_body"),
    ("stream", "previous_response_id", "functions", "function_call"),
)
"""What is known of one call: to be sent, or to be refused with a word of its own."""
# A schema of its own: pydantic cannot describe a policy's collections, and refused to describe the model.
OptionalSpendPolicy = Annotated[SpendPolicy | None, WithJsonSchema({"type": ["object", "null"]})]


class PaidModel(FunctionCallingLLM):
    """Fields and identity of an `OpenGradient` model; abstract, since it cannot be called.

    The environment is read once, when the model is made; nothing is opened or checked before the first call. Keys
    never leave through a dump, a pickle, a repr or a trace.
    """

    model: str = Field(description="The model's name, as in `openai/gpt-5`.")
    temperature: float | None = Field(default=None, description="Sampling temperature; None leaves it to the model.")
    max_tokens: int | None = Field(default=None, gt=0, description="The most tokens that an answer may have.")
    stop: list[str] | None = Field(default=None, description="Texts at which an answer ends.")
    web_search: bool = Field(default=False, description="Whether the model may search the web, where it can.")
    logprobs: bool | None = Field(default=None, description="Whether answers come with `ChatResponse.logprobs`.")
    top_logprobs: int | None = Field(default=None, description="Alternatives in `logprobs` for each token.")
    reasoning_effort: str | None = Field(
        default=None, description="How much a reasoning model thinks: none, minimal, low, medium, high, xhigh."
    )
    modalities: list[str] | None = Field(default=None, description="What answers are made of: text, audio, image.")
    audio_config: dict[str, Any] | None = Field(default=None, description="Voice and format of answers in audio.")
    strict: bool = Field(default=False, description="Whether tool calls must follow the tools' schemas exactly.")
    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further members of every request's body, e.g. `seed`."
    )
    structured_by: Literal["tool", "response_format"] = Field(
        default="tool",
        description="How structured prediction asks: with a forced tool, or with a response format, for models that "
        "refuse a forced tool.",
    )

    private_key: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="The payer's key: text, a LocalAccount, a Keystore, or a signer; None reads OG_PRIVATE_KEY.",
    )
    rpc_url: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="The node that reads the chain (several, with commas, are asked in turn); None reads OG_RPC_URL.",
    )
    web3: Any = Field(
        default=None, exclude=True, repr=False, description="A connected Web3 or AsyncWeb3, in place of `rpc_url`."
    )
    network: Any = Field(
        default=None,
        description="A preset, a network file's path or URL, a running Devnet, or a Network; None reads OG_NETWORK.",
    )
    base_url: str | None = Field(
        default=None, description="The gateway; None takes the network's own, `registry` the enclaves of its registry."
    )
    settlement_mode: SettlementMode | Literal["private", "batch", "individual"] | None = Field(
        default=None, description="What goes on chain about the data; None reads OG_SETTLEMENT_MODE (batch)."
    )
    spend_policy: OptionalSpendPolicy = Field(default=None, description="Limits on payments; None is the safe default.")
    ledger: Any = Field(default=None, repr=False, description="A Ledger, its URL or path; None reads OG_LEDGER_URL.")
    payments: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="An open Payments to share; replaces key, network, policy and ledger.",
    )

    default_headers: dict[str, str] | None = Field(
        default=None, exclude=True, repr=False, description="Further headers of each request; keys are among them."
    )
    http_client: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="An httpx client or transport that sends the sync calls, below the payment. Never closed here.",
    )
    async_http_client: Any = Field(default=None, exclude=True, repr=False, description="The same for async calls.")
    verify_tee: VerifyTee | VerifyTeeName = Field(
        default=VerifyTee.OFF, description="What to do about enclave proofs: off, warn, require, or require-before."
    )
    whole_receipts: bool = Field(
        default=False, description="Put the whole receipt into each response, and not its short form (`receipt_of`)."
    )
    timeout: Timeout = Field(
        default=120.0, description="Seconds that one call may take; (to connect, to answer), or an httpx.Timeout."
    )
    max_retries: int = Field(default=2, ge=0, description="Repetitions of a request for which nothing was signed.")
    context_window: int | None = Field(default=None, gt=0, description="Overrides the catalog's context window.")
    is_function_calling_model: bool | None = Field(default=None, description="Overrides the catalog.")

    _connections: Connections = PrivateAttr(default_factory=Connections)
    _calls_group: str = PrivateAttr(default="")
    _environment: Settings = PrivateAttr(default_factory=Settings.load)

    # A misspelt limit must not pass for none at all, and a wrong field must not print the key beside it.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**with_hidden_secrets(fields))

    # -- what the model is

    @model_validator(mode="before")
    @classmethod
    def _take_older_names(cls, fields: Any) -> Any:
        """`x402_settlement_mode` is what the OpenGradient SDK says, `api_key` what generic code says, `api_base` what
        OpenAI's users say."""
        if not isinstance(fields, dict):
            return fields
        known = {*cls.model_fields, *_OLDER_NAMES, "class_name"}  # dumps hold the last
        check_names(cls.__name__, [name for name in fields if fields[name] is not None], known=known)
        # In settings that come from a file, None means "not set"; some fields do not take it as a value.
        fields = {name: value for name, value in fields.items() if name != "class_name" and value is not None}
        for older, name in _OLDER_NAMES.items():
            value = fields.pop(older, None)
            if fields.get(name) is None and value is not None:
                fields[name] = value
                if older == "api_base":
                    warnings.warn(
                        f"api_base={value!r} is taken for `base_url`. A server there is asked for a price, and "
                        "nothing is paid if it names none.",
                        UserWarning,
                        stacklevel=2,
                    )
        if isinstance(fields.get("network"), DescribedNetwork):
            fields["network"] = load_network(fields["network"])
        cls._check_call(fields.get("additional_kwargs") or ())
        return fields

    @classmethod
    def _check_call(cls, names: Iterable[str]) -> None:
        """Raises ConfigurationError for what only a model has, and for slips of the pen."""
        check_call(cls.class_name(), names, known=_OF_A_CALL, fields={*cls.model_fields, *_OLDER_NAMES})

    @field_validator("verify_tee", mode="after")
    @classmethod
    def _parse_verify_tee(cls, check: Any) -> VerifyTee:
        return VerifyTee(check)

    @field_validator("settlement_mode", mode="before")
    @classmethod
    def _read_settlement_mode(cls, mode: Any) -> SettlementMode | None:
        return None if mode is None else SettlementMode.parse(mode)

    @field_validator("settlement_mode", mode="after")
    @classmethod
    def _parse_settlement_mode(cls, mode: Any) -> SettlementMode | None:
        return None if mode is None else SettlementMode(mode)

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, timeout: Any) -> Any:
        TimeLimits().changed(timeout)
        return timeout

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, given: str | None) -> str | None:
        return checked_base_url(given)

    @field_validator("http_client", "async_http_client")
    @classmethod
    def _check_http_client(cls, given: Any) -> Any:
        return checked_sender(given)

    @field_serializer("timeout")
    def _dump_timeout(self, timeout: Any) -> Any:
        return (timeout.connect, timeout.read) if isinstance(timeout, httpx.Timeout) else timeout

    @field_validator("stop", mode="before")
    @classmethod
    def _listed_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_serializer("network")
    def _dump_network(self, network: Any) -> str | None:
        if network is None:
            return None
        return network.name if isinstance(network, Network) else str(network)

    @field_serializer("spend_policy")
    def _dump_spend_policy(self, policy: SpendPolicy | None) -> dict[str, Any] | None:
        if policy is None:
            return None
        limits = dataclasses.asdict(policy)
        limits.pop("approval")  # a program that loads the model names again who is asked
        return {name: sorted(limit) if isinstance(limit, frozenset) else limit for name, limit in limits.items()}

    @field_serializer("ledger")
    def _dump_ledger(self, ledger: Any) -> str | None:
        """The ledger's URL; None if it holds a password. Then name the ledger again when you load the model."""
        url = ledger.url if isinstance(ledger, Ledger) else ledger
        return None if url is None or "@" in str(url) else str(url)

    @classmethod
    def class_name(cls) -> str:
        return "OpenGradient"

    @property
    def metadata(self) -> LLMMetadata:
        """What the catalog says of the model. An unknown name gives cautious defaults, never an error."""
        info = find_model(self.model)
        known: dict[str, Any] = {}
        if window := self.context_window or (info.context_tokens if info else None):
            known["context_window"] = window
        # What a call asks for, not what the model could do: query engines subtract it from the context window.
        known["num_output"] = self.max_tokens or GATEWAY_MAX_TOKENS
        calls_tools = self.is_function_calling_model
        if calls_tools is None:
            calls_tools = info is None or info.supports_tools is not False
        return LLMMetadata(**known, is_chat_model=True, is_function_calling_model=calls_tools, model_name=self.model)

    def to_payload(self) -> dict[str, Any]:
        """The payload of traces: the model's name and settings, without key, wallet or network."""
        # Written out, for the cores that do not have this method yet.
        about = {"class_name": self.class_name(), **self.metadata.model_dump()}
        return {**about, "model": self.model, "temperature": self.temperature}

    def _body_fields(self) -> dict[str, Any]:
        """The fields of the body that are set. A field at None does not replace `additional_kwargs`."""
        fields = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "reasoning_effort": self.reasoning_effort,
            "modalities": self.modalities,
            "audio": self.audio_config,
        }
        return {name: value for name, value in fields.items() if value is not None}

    # -- clients

    def _client(self) -> GatewayClient:
        return self._connections.client(self._route())

    async def _async_client(self) -> AsyncGatewayClient:
        return await self._connections.async_client(self._route())

    def _route(self) -> Route:
        found = self._environment
        return Route(
            private_key=self.private_key or found.key,
            network=self.network or found.network,
            rpc_url=self.rpc_url or (None if isinstance(self.network, Network) else found.rpc_url),
            web3=self.web3,
            policy=self.spend_policy,
            ledger=self.ledger or found.ledger_url,
            payments=self.payments,
            base_url=self.base_url or found.gateway_url,
            max_retries=self.max_retries,
            verify_tee=self.verify_tee,
            http_client=self.http_client,
            http_async_client=self.async_http_client,
        )

    def close(self) -> None:
        """Close what no other model uses; the next call opens it again."""
        self._connections.close()

    async def aclose(self) -> None:
        """`close`, for the connections of the running event loop too."""
        await self._connections.aclose()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but secrets, live objects and handlers. Unpickling reads OG_PRIVATE_KEY again.

        Limits and ledger are kept, so that a worker spends within the same budget, and the handlers that listen now
        find the receipts of what it pays.
        """
        state = BaseModel.__getstate__(self)
        live: Payments | None = self.payments
        values = {**state["__dict__"], "private_key": None, **dict.fromkeys(_LIVE_OR_SECRET)}
        if live is not None:
            values.update(network=live.network, spend_policy=live.policy, ledger=live.ledger)
        if isinstance(values["ledger"], Ledger):
            values["ledger"] = values["ledger"].url
        for name in ("callback_manager", "rate_limiter"):
            values.pop(name, None)
        values["_calls_group"] = expect_calls(self._ledger_of_workers) or self._calls_group
        return {**state, "__dict__": values, "__pydantic_private__": None}

    def _ledger_of_workers(self) -> Ledger:
        used = self.payments.ledger if self.payments is not None else self.ledger
        return OF_THE_PROCESS.found(used or self._environment.ledger_url)

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = dict(state["__dict__"])
        group = values.pop("_calls_group", "")
        super().__setstate__({**state, "__dict__": values})
        self._calls_group = group

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with fields of its own, which pays from the same payments: one wallet, one budget, one set of
        sessions. Handlers are shared as well, so that they report what the copy pays."""
        return self.model_copy(
            update={
                "additional_kwargs": deepcopy(self.additional_kwargs, memo),
                "stop": list(self.stop) if self.stop is not None else None,
            }
        )
