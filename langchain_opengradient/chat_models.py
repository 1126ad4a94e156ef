"""`ChatOpenGradient`: a LangChain chat model that pays for its calls over x402.

A thin shell: it gathers what the user set, lets `calls` build the request, drives the gateway client, and lets
`conversions` read the answer. It does not know payments, the wire, or how receipts reach their listeners.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from langchain_opengradient import structured_output as structured
from langchain_opengradient.blocks import PROVIDER
from langchain_opengradient.callbacks import SettlementReport
from langchain_opengradient.calls import ChatCall, build_call, is_anthropic, model_name
from langchain_opengradient.conversions import to_chunk, to_result, to_terminal_chunk
from langchain_opengradient.errors import raised_as_model_errors
from langchain_opengradient.profiles import profile_of
from langchain_opengradient.tokens import count_messages, count_text
from langchain_opengradient.tools import ToolLike, is_web_search, to_wire_choice, to_wire_tool
from opengradient_x402.connections import Connections, Route, Spender
from opengradient_x402.settings import Settings
from opengradient_x402.settlement import SettlementMode

_SHARED_BY_COPIES = ("connections", "payments", "ledger", "client", "async_client", "rate_limiter", "cache")


class ChatOpenGradient(BaseChatModel):
    """Chat models of every large provider, paid per call, served from an attested enclave, with a receipt.

    ```python
    from langchain_opengradient import ChatOpenGradient, get_settlement_callback

    model = ChatOpenGradient(model="openai/gpt-5")  # the key comes from OG_PRIVATE_KEY
    with get_settlement_callback() as settlements:
        print(model.invoke("What is x402?").text)
    print(settlements.spent_opg, "OPG")
    ```

    What is not given comes from the environment or a `.env` file (`OG_PRIVATE_KEY`, `OG_NETWORK`,
    `OG_GATEWAY_URL`, `OG_LEDGER_URL`, `OG_SETTLEMENT_MODE`). Key, wallet and network are looked at on first
    use. Every field can be overridden per call: `model.invoke(…, temperature=0, settlement_mode="private")`.

    Each answer carries its receipt in `response_metadata["opengradient"]`. Errors subclass LangChain's typed
    model errors and say what happened to the money; see `langchain_opengradient.errors`.
    """

    model_name: str = Field(alias="model")
    """Model to call, such as "openai/gpt-5", "anthropic/claude-sonnet-4-6", or a `TEE_LLM` member."""

    private_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Key of the wallet that pays. Never printed, traced, dumped or pickled."""
    network: str | Path | Any | None = None
    """Preset name ("base", "base-sepolia", "devnet"), path or URL of a network file, or a `Network`."""
    base_url: str | None = None
    """Gateway to call; by default the network's."""
    settlement_mode: str | None = None
    """What goes on chain about the data of a call: "private", "batch" (default) or "individual"."""
    spend_policy: Any | None = Field(default=None, exclude=True, repr=False)
    """`SpendPolicy`: what may be paid, to whom. By default 5 OPG an authorization and 20 OPG a day."""
    ledger: Any | None = Field(default=None, exclude=True, repr=False)
    """`Ledger`, path or SQLAlchemy URL where authorizations and receipts are kept."""

    temperature: float | None = None
    max_tokens: int | None = None
    """Longest answer; gateways read an absent value as 4096."""
    stop: list[str] | str | None = Field(default=None, alias="stop_sequences")
    """Where answers end. Applied on this side too, since gateways do not."""
    timeout: float | None = Field(default=None, alias="request_timeout")
    """Seconds until a call is given up (default 120)."""
    verify_tee: Literal["off", "warn", "require"] = "off"
    """Check the enclave's signature over each answer; "require" withholds answers without a good one."""
    max_retries: int = 2
    """Attempts to reach the gateway before anything was signed. After that nothing is sent twice."""
    streaming: bool = False
    """Stream in `invoke` too, so that handlers see tokens."""
    stream_usage: bool = True
    """Put token counts on the last chunk of a stream."""
    web_search: bool = False
    """Let the model search the web."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the request body."""

    payments: Any | None = Field(default=None, exclude=True, repr=False)
    """`Payments` to share with other clients; it replaces key, network, policy and ledger."""
    client: Any | None = Field(default=None, exclude=True, repr=False)
    """`GatewayClient` to use for sync calls. It is never closed here."""
    async_client: Any | None = Field(default=None, exclude=True, repr=False)
    """`AsyncGatewayClient` to use for async calls. It is never closed here."""
    connections: Connections = Field(default_factory=Connections, exclude=True, repr=False)
    """The clients made here; copies of the model share them."""

    # A wrong field must not print the other fields' input: the private key is among them.
    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True, protected_namespaces=())

    def __init__(self, **fields: Any) -> None:
        for name in ("api_key", "private_key"):
            if isinstance(value := fields.get(name), str):
                fields[name] = SecretStr(value)  # before validation, whose errors keep their input
        super().__init__(**fields)

    # Construction

    @model_validator(mode="before")
    @classmethod
    def _complete_from_environment(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("connections") is not None:
            return fields  # a copy of a model that is complete already
        fields = dict(fields)
        if (api_key := fields.pop("api_key", None)) is not None and fields.get("private_key") is None:
            fields["private_key"] = api_key  # what generic code calls it
        mode = fields.pop("x402_settlement_mode", None)  # what the OpenGradient SDK calls it
        settings = Settings.load()
        for name, value in (
            ("private_key", settings.private_key),
            ("network", settings.network),
            ("base_url", settings.gateway_url),
            ("settlement_mode", mode if mode is not None else settings.settlement_mode),
        ):
            if fields.get(name) is None:
                fields[name] = value
        return fields

    @field_validator("model_name", mode="before")
    @classmethod
    def _plain_model_name(cls, value: Any) -> Any:
        return model_name(value)

    @field_validator("settlement_mode", mode="before")
    @classmethod
    def _parsed_settlement_mode(cls, value: Any) -> Any:
        return None if value is None else SettlementMode.parse(value).value

    @model_validator(mode="after")
    def _set_opengradient_version(self) -> Self:
        if hasattr(self, "_add_version"):  # langchain-core 1.5 and later
            self._add_version("langchain-opengradient", version("opengradient-integrations"))
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
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "web_search": self.web_search or None,
            **self.model_kwargs,
        }
        return {name: value for name, value in params.items() if value not in (None, [])}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
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
        if sequences := stop or self.stop:
            params["ls_stop"] = [sequences] if isinstance(sequences, str) else list(sequences)
        return params

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What stands for a secret in serialized form."""
        return {"private_key": "OG_PRIVATE_KEY"}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """It is; secrets and connections stay behind."""
        return True

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        # The key stays in this process; where the model is unpickled, OG_PRIVATE_KEY is read on first use.
        own = {**state["__dict__"], "private_key": None, "connections": Connections()}
        for name in ("payments", "ledger", "client", "async_client"):
            own[name] = None
        return {**state, "__dict__": own}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for name in _SHARED_BY_COPIES:
            shared = getattr(self, name)
            memo[id(shared)] = shared  # sockets, locks and caches cannot be copied; one wallet, one set of them
        return super().__deepcopy__(memo)

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: dict[str, Any] | type | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A copy of this model that may call `tools`.

        `tool_choice`: "any", "required" or True for some tool, a name or function dict for that one, "auto",
        "none". A provider's built-in web search among the tools turns the gateway's on. Raises ValueError for
        a choice that names no bound tool.
        """
        functions = [to_wire_tool(tool, strict=strict) for tool in tools if not is_web_search(cast("ToolLike", tool))]
        bound: dict[str, Any] = {**kwargs}
        if functions:
            names = [function["function"]["name"] for function in functions]
            bound["tools"] = functions
            bound["tool_choice"] = to_wire_choice(tool_choice, names)
            bound["parallel_tool_calls"] = parallel_tool_calls
        if len(functions) < len(tools):
            bound["web_search"] = True
        if response_format is not None:
            bound["response_format"] = structured.to_response_format(response_format, strict=strict)
        return self.bind(**{name: value for name, value in bound.items() if value is not None})

    def with_structured_output(
        self,
        schema: structured.Schema | None = None,
        *,
        method: structured.Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A runnable that answers in the shape of `schema`: an instance of a pydantic class, or else a dict.

        `schema`: pydantic v2 or v1 class, TypedDict, JSON schema, OpenAI function or format. Raises
        `ModelRefusal` when the model refuses, and core's OutputParserException when the answer does not fit;
        with `include_raw` the latter is returned beside the raw message.
        """
        if method not in structured.METHODS:
            raise ValueError(f"Unknown method {method!r}: use one of {', '.join(structured.METHODS)}.")
        if schema is None and method != "json_mode":
            raise ValueError(f"method={method!r} needs a schema; only 'json_mode' works without one.")
        if strict is not None and method == "json_mode":
            raise ValueError("`strict` needs a schema that the provider sees: use 'json_schema'.")
        trace: dict[str, Any] = {}
        if schema is not None:
            used = {"method": method, **({} if strict is None else {"strict": strict})}
            trace = {"ls_structured_output_format": {"kwargs": used, "schema": schema}}
        if method == "function_calling":
            return self._with_forced_tool(cast("structured.Schema", schema), trace, include_raw, strict, kwargs)
        response_format: dict[str, Any] = {"type": "json_object"}
        if schema is not None and (method == "json_schema" or is_anthropic(self.model_name)):
            response_format = structured.to_response_format(schema, strict=strict)
        model = self.bind(response_format=response_format, **trace, **kwargs)
        return structured.chain(model, structured.content_parser(schema), include_raw=include_raw)

    def _with_forced_tool(
        self,
        schema: structured.Schema,
        trace: dict[str, Any],
        include_raw: bool,  # noqa: FBT001 - passed through
        strict: bool | None,  # noqa: FBT001 - passed through
        kwargs: dict[str, Any],
    ) -> Runnable[LanguageModelInput, Any]:
        name = to_wire_tool(schema)["function"]["name"]
        model = self.bind_tools(
            [schema], tool_choice=name, strict=strict, **{"parallel_tool_calls": False, **trace, **kwargs}
        )
        return structured.chain(model, structured.tool_parser(schema, name), include_raw=include_raw)

    # Token counts

    def get_num_tokens(self, text: str) -> int:
        """Estimated tokens of `text`: no tokenizer, no download."""
        return count_text(text) if self.custom_get_token_ids is None else len(self.custom_get_token_ids(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Estimated prompt tokens of `messages` and `tools`: no tokenizer, no download."""
        return count_messages(messages, tools=tools)

    # Calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        report = SettlementReport(run_manager)
        try:
            with raised_as_model_errors():
                call = self._call(messages, stop, kwargs)
                completion = self._client().chat(call.body, on_receipt=report.receive, **_options(call))
        except (KeyboardInterrupt, SystemExit) as exc:
            report.attach(exc)
            raise
        finally:
            report.close()
        call.check_answer(completion)
        return to_result(completion, model_name=call.served_model_name(completion))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        report = SettlementReport(run_manager)
        try:
            with raised_as_model_errors():
                call = self._call(messages, stop, kwargs)
                client = await self._async_client()
                completion = await client.chat(call.body, on_receipt=report.receive, **_options(call))
        except asyncio.CancelledError as exc:
            report.attach(exc)
            raise
        finally:
            report.close()
        call.check_answer(completion)
        return to_result(completion, model_name=call.served_model_name(completion))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        report = SettlementReport(run_manager)
        try:
            with raised_as_model_errors():
                call = self._call(messages, stop, kwargs)
                stream = self._client().stream(call.body, on_receipt=report.receive, **_options(call))
                with closing(stream):
                    for delta in stream:
                        if not delta.is_empty:
                            chunk = to_chunk(delta)
                            report.watch(chunk)
                            yield chunk
            completion = stream.completion
            call.check_answer(completion)
            yield self._terminal_chunk(call, completion, report, kwargs)
        except (KeyboardInterrupt, SystemExit) as exc:
            report.attach(exc)
            raise
        finally:
            report.close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        report = SettlementReport(run_manager)
        try:
            with raised_as_model_errors():
                call = self._call(messages, stop, kwargs)
                client = await self._async_client()
                stream = await client.stream(call.body, on_receipt=report.receive, **_options(call))
                async with aclosing(stream):
                    async for delta in stream:
                        if not delta.is_empty:
                            chunk = to_chunk(delta)
                            report.watch(chunk)
                            yield chunk
            completion = stream.completion
            call.check_answer(completion)
            yield self._terminal_chunk(call, completion, report, kwargs)
        except asyncio.CancelledError as exc:
            report.attach(exc)
            raise
        finally:
            report.close()

    def _terminal_chunk(
        self, call: ChatCall, completion: Any, report: SettlementReport, kwargs: Mapping[str, Any]
    ) -> ChatGenerationChunk:
        return to_terminal_chunk(
            completion,
            report.receipt,
            model_name=call.served_model_name(completion),
            with_usage=kwargs.get("stream_usage", self.stream_usage),
        )

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> ChatCall:
        defaults = {
            **self.model_kwargs,
            "model": self.model_name,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": stop or self.stop,
            "web_search": self.web_search,
            "settlement_mode": self.settlement_mode,
            "timeout": self.timeout,
        }
        return build_call(messages, defaults=defaults, kwargs=kwargs)

    # Connections

    def _client(self) -> Any:
        return self.client if self.client is not None else self.connections.client(self._route())

    async def _async_client(self) -> Any:
        if self.async_client is not None:
            return self.async_client
        return await self.connections.async_client(self._route())

    def _route(self) -> Route:
        spender = Spender(
            private_key=self.private_key,
            network=self.network,
            policy=self.spend_policy,
            ledger=self.ledger,
            payments=self.payments,
        )
        return Route(spender=spender, base_url=self.base_url, max_retries=self.max_retries, verify_tee=self.verify_tee)

    def close(self) -> None:
        """Close what this model and its copies opened; the next call opens it again."""
        self.connections.close()

    async def aclose(self) -> None:
        """`close`, for the connections of the running event loop too."""
        await self.connections.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        await self.aclose()
        return False


def _options(call: ChatCall) -> dict[str, Any]:
    return {"settlement_mode": call.settlement_mode, "timeout_s": call.timeout_s, "headers": call.headers}
