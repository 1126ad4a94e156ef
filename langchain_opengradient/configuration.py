"""The fields of a `ChatOpenGradient`, and how the model is named, serialized and copied.

What is not given comes from the environment. The wallet's key is never printed, traced, dumped or pickled. Key and
network are not checked here: the first call does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Self

import httpx
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from langchain_opengradient.blocks import PROVIDER
from langchain_opengradient.callbacks import expect_call
from langchain_opengradient.calls import IN_THE_BODY, OLDER_NAMES, REQUEST_PARAMETERS, check_members, model_name
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.clients import Connections
from opengradient_x402.http.time_limits import TimeLimits, Timeout
from opengradient_x402.keys.signer import with_hidden_secrets
from opengradient_x402.models import find_model
from opengradient_x402.networks import DescribedNetwork, Network, load_network
from opengradient_x402.parameters import check_names, checked_base_url, checked_sender
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.proofs.attestation import VerifyTee, VerifyTeeName
from opengradient_x402.settings import Settings
from opengradient_x402.settlement_mode import SettlementMode

_SHARED_BY_COPIES: Final = (
    "private_key",
    "rpc_url",
    "web3",
    "connections",
    "payments",
    "ledger",
    "client",
    "async_client",
    "http_client",
    "http_async_client",
    "rate_limiter",
    "cache",
)
_FROM_SETTINGS: Final = {"base_url": "gateway_url", "settlement_mode": "settlement_mode"}
_OF_PAYMENTS: Final = {"private_key": "key", "network": "network", "rpc_url": "rpc_url", "ledger": "ledger_url"}
"""Fields that are completed from the settings, and the setting of each; the second ones only without `payments`."""
_LIVE_OR_SECRET: Final = ("http_client", "http_async_client", "default_headers", "default_query")
_NO_FIELDS: Final = frozenset({"x402_settlement_mode", "lc_kwargs"})
SettlementModeName = Literal["private", "batch", "individual"]


# A wrong field must not print the other fields' input: the private key is among them. It has a name of its own because
# pydantic's mypy plugin, where it reads `populate_by_name`, asks for `model_name=` in place of the alias `model=`.
_CONFIG: Final = ConfigDict(populate_by_name=True, hide_input_in_errors=True, protected_namespaces=())


class ConfiguredChatModel(BaseChatModel):
    """The fields of `ChatOpenGradient`, and its identity."""

    model_name: str = Field(alias="model")
    """Model to call, such as "openai/gpt-5", "anthropic/claude-sonnet-4-6", or a `TEE_LLM` member."""

    private_key: Any | None = Field(default=None, exclude=True, repr=False)
    """Key of the wallet that pays: text, an eth-account `LocalAccount`, a `Keystore`, or a signer. Never printed,
    traced, dumped or pickled."""
    network: str | Path | Any | None = None
    """Preset name ("base", "base-sepolia", "devnet"), path or URL of a network file, a running `Devnet`, or a
    `Network`."""
    rpc_url: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Node to read the chain from, in place of the network's (OG_RPC_URL); several, with commas, are asked in turn."""
    web3: Any | None = Field(default=None, exclude=True, repr=False)
    """A connected `Web3` or `AsyncWeb3` to read the chain with, in place of `rpc_url`."""
    base_url: str | None = None
    """Gateway to call; by default the network's."""
    settlement_mode: SettlementModeName | SettlementMode | None = None
    """What goes on chain about the data of a call: "private", "batch" (default) or "individual"."""
    spend_policy: Any | None = Field(default=None, exclude=True, repr=False)
    """`SpendPolicy`: what may be paid, to whom. By default 5 OPG (or other tokens) an authorization and 20 a day."""
    ledger: Any | None = Field(default=None, exclude=True, repr=False)
    """`Ledger`, path or SQLAlchemy URL where authorizations and receipts are kept."""

    temperature: float | None = None
    max_tokens: int | None = None
    """Longest answer; gateways read an absent value as 4096."""
    stop: list[str] | str | None = None
    """Where answers end. Applied on this side too, since gateways do not."""
    top_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, int] | None = None
    logprobs: bool | None = None
    """Put the tokens' log probabilities into `response_metadata["logprobs"]`."""
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    """How much a reasoning model thinks: "none", "minimal", "low", "medium", "high", "xhigh"."""
    reasoning: dict[str, Any] | None = None
    """The same as OpenRouter has it: `{"effort": "low"}`, `{"max_tokens": 2000}`."""
    verbosity: str | None = None
    service_tier: str | None = None
    timeout: Timeout | None = None
    """Seconds until a call is given up (default 120); or (to connect, to answer), or an `httpx.Timeout`."""
    stream_chunk_timeout: float | None = None
    """Seconds that a stream may be silent between two chunks (default: `timeout`)."""
    verify_tee: VerifyTeeName | VerifyTee = "off"
    """Check the enclave's signature over each answer; "require" withholds answers without a good one (a stream is shown
    as it comes, and ends with the error), "require-before" holds streams back until they are proven."""
    max_retries: int = 2
    """Attempts to reach the gateway before anything was signed. After that nothing is sent twice."""
    streaming: bool = False
    """Stream in `invoke` too, so that handlers see tokens."""
    stream_usage: bool = True
    """Put token counts on the last chunk of a stream."""
    whole_receipts: bool = False
    """Put the whole receipt into each message, and not its short form, whose rest `receipt_of(message)` finds."""
    web_search: bool = False
    """Let the model search the web."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further members of the request's body."""
    extra_body: Mapping[str, Any] | None = None
    """The same, for what replaces members that the model itself sets."""
    default_headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    """Further headers of each request, such as those that a gateway of your own asks for. Not printed: keys are
    among them."""
    default_query: Mapping[str, object] | None = Field(default=None, exclude=True, repr=False)
    """The query of each request's URL."""
    http_client: Any | None = Field(default=None, exclude=True, repr=False)
    """An `httpx.Client` or transport that sends the sync calls, with proxies or sockets of your own. Payment stays
    above it, and it is never closed here."""
    http_async_client: Any | None = Field(default=None, exclude=True, repr=False)
    """The same for async calls: an `httpx.AsyncClient` or transport."""

    payments: Any | None = Field(default=None, exclude=True, repr=False)
    """`Payments` to share with other clients; it replaces key, network, policy and ledger."""
    client: Any | None = Field(default=None, exclude=True, repr=False)
    """`GatewayClient` to use for sync calls. It is never closed here."""
    async_client: Any | None = Field(default=None, exclude=True, repr=False)
    """`AsyncGatewayClient` to use for async calls. It is never closed here."""
    connections: Connections = Field(default_factory=Connections, exclude=True, repr=False)
    """What this model uses of the process's clients, which all models share; copies of the model share this object."""

    model_config = _CONFIG

    def __init__(self, **fields: Any) -> None:
        super().__init__(**with_hidden_secrets(fields))

    # Construction

    @property
    def model(self) -> str:
        """`model_name`, as the argument is called."""
        return self.model_name

    @model_validator(mode="before")
    @classmethod
    def _complete_from_environment(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("connections") is not None:
            return fields  # a copy of a model that is complete already
        check_names(
            cls.__name__,
            [name for name in fields if name != "n" or fields["n"] not in (None, 1)],
            known={*cls.model_fields, "model", *REQUEST_PARAMETERS, *OLDER_NAMES, *_NO_FIELDS},
        )
        fields = _with_request_parameters(fields)
        check_members(cls.__name__, fields.get("model_kwargs") or (), fields=cls.model_fields)
        mode = fields.pop("x402_settlement_mode", None)  # what the OpenGradient SDK calls it
        if isinstance(fields.get("network"), DescribedNetwork):
            fields["network"] = load_network(fields["network"])
        settings = Settings.load()
        if mode is not None and fields.get("settlement_mode") is None:
            fields["settlement_mode"] = mode
        # Only what is missing is asked for: what follows from the environment may need files or a home directory.
        wanted = {**_FROM_SETTINGS, **({} if fields.get("payments") is not None else _OF_PAYMENTS)}
        if isinstance(fields.get("network"), Network):
            wanted.pop("rpc_url", None)
        for name, setting in wanted.items():
            if fields.get(name) is None:
                fields[name] = getattr(settings, setting)
        return fields

    @field_validator("model_name", mode="before")
    @classmethod
    def _plain_model_name(cls, value: Any) -> Any:
        if value is None or not model_name(value).strip():
            raise ValueError('no model is named; give one such as model="openai/gpt-5"')
        return model_name(value)

    @field_validator("spend_policy", mode="before")
    @classmethod
    def _read_spend_policy(cls, value: Any) -> Any:
        return SpendPolicy(**value) if isinstance(value, Mapping) else value  # as a YAML or JSON file has it

    @field_validator("settlement_mode", mode="before")
    @classmethod
    def _parsed_settlement_mode(cls, value: Any) -> Any:
        return None if value is None else SettlementMode.parse(value).value

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        return checked_base_url(value)

    @field_validator("http_client", "http_async_client")
    @classmethod
    def _check_http_client(cls, value: Any) -> Any:
        return checked_sender(value)

    @field_validator("timeout", "stream_chunk_timeout")
    @classmethod
    def _check_time_limit(cls, value: Any) -> Any:
        TimeLimits().changed(value)
        # In a form that a dump can hold.
        return (value.connect, value.read) if isinstance(value, httpx.Timeout) else value

    @model_validator(mode="after")
    def _set_opengradient_version(self) -> Self:
        if hasattr(self, "_add_version"):  # langchain-core 1.5 and later
            self._add_version("langchain-opengradient", _own_version())
        return self

    def _resolve_model_profile(self) -> Any:
        return profile_of(self.model_name)

    # Identity: traces, serialization, copies

    @property
    def _llm_type(self) -> str:
        return "opengradient-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        params = {
            "model": self.model_name,
            "network": self.network if isinstance(self.network, str) else getattr(self.network, "name", None),
            "base_url": self.base_url,
            "settlement_mode": self.settlement_mode,
            **self.model_kwargs,
            **self._body_fields(),
        }
        return {name: value for name, value in params.items() if value not in (None, [])}

    def _body_fields(self) -> dict[str, Any]:
        """The members of every request's body that somebody set."""
        values = {name: getattr(self, name) for name in IN_THE_BODY}
        return {name: value for name, value in values.items() if value is not None} | (
            {"web_search": True} if self.web_search else {}
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        expect_call()
        params = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_type="chat",
            ls_model_name=model_name(kwargs.get("model") or self.model_name),
        )
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        if (max_tokens := kwargs.get("max_tokens", self.max_tokens)) is not None:
            params["ls_max_tokens"] = max_tokens
        if sequences := self.stop if stop is None else stop:
            params["ls_stop"] = list(sequences) if isinstance(sequences, list | tuple) else [sequences]
        return params

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What stands for a secret in serialized form."""
        return {"private_key": "OG_PRIVATE_KEY"}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: a model can be serialized. Its secrets and connections are left out."""
        return True

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        # The key stays in this process; where the model is unpickled, `__setstate__` reads the environment again.
        own = {**state["__dict__"], "private_key": None, "connections": Connections()}
        for name in ("payments", "ledger", "client", "async_client", "rpc_url", "web3", *_LIVE_OR_SECRET):
            own[name] = None
        return {**state, "__dict__": own}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        settings = Settings.load()
        own = {**state["__dict__"], "private_key": settings.key, "ledger": settings.ledger_url}
        super().__setstate__({**state, "__dict__": own | {"rpc_url": settings.rpc_url}})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for name in _SHARED_BY_COPIES:
            shared = getattr(self, name)
            memo[id(shared)] = shared  # sockets, locks and caches cannot be copied; one wallet, one set of them
        return super().__deepcopy__(memo)


@cache
def _own_version() -> str:
    """Read from the installed files once: a web handler makes a model for each request."""
    return version("opengradient-integrations")


def _with_request_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """A copy of `given` under today's names, with request parameters that are no fields in `model_kwargs`.

    Raises ConfigurationError when two names of one field say different things: one of them would not be sent.
    """
    # In settings that come from a file, None means "not set"; most fields do not take it as a value.
    fields = {name: value for name, value in given.items() if value is not None or name in ("model", "model_name")}
    for older, name in OLDER_NAMES.items():
        value = fields.pop(older, None)
        if value is not None and fields.get(name) is None:
            fields[name] = value
        elif value is not None and older != "api_key" and value != fields[name]:
            raise ConfigurationError(
                f"{older}={value!r} and {name}={fields[name]!r} were both given. Nothing was paid. Keep one of them."
            )
    fields.pop("n", None)
    moved = {name: fields.pop(name) for name in REQUEST_PARAMETERS & fields.keys()}
    if moved:
        fields["model_kwargs"] = {**moved, **(fields.get("model_kwargs") or {})}
    return fields


def profile_of(model: object) -> dict[str, Any] | None:
    """A fresh profile dict for `model` (any spelling that `find_model` takes); None for an unknown model."""
    info = find_model(model)
    if info is None:
        return None
    profile = {
        "max_input_tokens": info.context_tokens,
        "max_output_tokens": info.max_output_tokens,
        "text_inputs": True,
        "image_inputs": info.supports_images,
        "image_url_inputs": info.supports_images,
        "image_tool_message": info.supports_images,
        "pdf_inputs": info.supports_pdf,
        "pdf_tool_message": info.supports_pdf,
        "audio_inputs": info.supports_audio,
        "text_outputs": True,
        "image_outputs": info.supports_image_output,
        "reasoning_output": info.supports_reasoning,
        "tool_calling": info.supports_tools,
        "tool_choice": info.supports_tools,
        "tool_call_streaming": info.supports_tools,
        "structured_output": info.supports_json_schema,
    }
    return {name: value for name, value in profile.items() if value is not None}  # what no source says is left out
