"""`ChatOpenGradient`: a LangChain chat model that pays for its calls over x402.

`configuration` holds the fields, `calls` builds the request, the gateway client pays and sends it, `conversions`
reads the answer, and `callbacks` reports the receipt. The four ways to call a model stand together here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

from langchain_opengradient import structured_output as structured
from langchain_opengradient.callbacks import SettlementReport, are_ours
from langchain_opengradient.calls import ChatCall, build_call, checked_keywords
from langchain_opengradient.configuration import ConfiguredChatModel
from langchain_opengradient.conversions import combined_outputs, to_chunk, to_result, to_terminal_chunk
from langchain_opengradient.errors import raised_as_model_errors
from langchain_opengradient.messages import count_messages, count_text
from langchain_opengradient.tools import ToolLike, is_web_search, to_wire_tool
from opengradient_x402.gateway.clients import Route
from opengradient_x402.gateway.request import chosen
from opengradient_x402.parameters import is_anthropic


class ChatOpenGradient(ConfiguredChatModel):
    """Chat models of every large provider, paid per call, served from an attested enclave, with a receipt.

    ```python
    from langchain_opengradient import ChatOpenGradient, get_settlement_callback

    model = ChatOpenGradient(model="openai/gpt-5")  # the key comes from OG_PRIVATE_KEY
    with get_settlement_callback() as settlements:
        print(model.invoke("What is x402?").text)
    print(settlements.spent)
    ```

    What is not given comes from the environment or a `.env` file (`OG_PRIVATE_KEY`, `OG_NETWORK`,
    `OG_GATEWAY_URL`, `OG_LEDGER_URL`, `OG_SETTLEMENT_MODE`), read once, when the model is made. Key, wallet and
    network are checked on first use. Every field can be overridden per call:
    `model.invoke(…, temperature=0, settlement_mode="private")`.

    Each answer names its receipt in `response_metadata["opengradient"]` (`receipt_of(answer)` returns all of it).
    Errors subclass LangChain's typed model errors and say what happened to the money; see
    `langchain_opengradient.errors`.
    """

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
        "none", or OpenAI's `allowed_tools`. A provider's built-in web search among the tools turns the gateway's
        on. Raises ValueError for a choice that names no bound tool, and for a web search with options.
        """
        functions = [to_wire_tool(tool, strict=strict) for tool in tools if not is_web_search(cast("ToolLike", tool))]
        bound: dict[str, Any] = {**kwargs}
        if functions:
            names = [function["function"]["name"] for function in functions]
            bound["parallel_tool_calls"] = parallel_tool_calls
            bound.update(chosen(functions, tool_choice, {name: name for name in names}))
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
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A runnable that answers in the shape of `schema`: an instance of a pydantic class, or else a dict.

        `schema`: pydantic v2 or v1 class, TypedDict, JSON schema, OpenAI function or format. Raises
        `ModelRefusal` when the model refuses, and core's OutputParserException when the answer does not fit;
        with `include_raw` the latter is returned beside the raw message. `tools`: what the model may call before it
        answers; then the method has to be "json_schema", and with `include_raw` the calls are in the raw message.
        """
        structured.check_method(method, schema=schema, strict=strict, tools=tools)
        trace: dict[str, Any] = {}
        if schema is not None:
            used = {"method": method, **({} if strict is None else {"strict": strict})}
            trace = {"ls_structured_output_format": {"kwargs": used, "schema": schema}}
        if method == "function_calling":
            return self._with_forced_tool(cast("structured.Schema", schema), trace, include_raw, strict, kwargs)
        response_format: dict[str, Any] = {"type": "json_object"}
        if schema is not None and (method == "json_schema" or is_anthropic(self.model_name)):
            response_format = structured.to_response_format(schema, strict=strict)
        if tools:
            model = self.bind_tools(tools, strict=strict, response_format=response_format, **trace, **kwargs)
        else:
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
        tool = structured.forced_tool(schema, strict=strict)
        name = tool["function"]["name"]
        model = self.bind_tools([tool], tool_choice=name, **{"parallel_tool_calls": False, **trace, **kwargs})
        return structured.chain(model, structured.tool_parser(schema, name), include_raw=include_raw)

    # Token counts

    def get_num_tokens(self, text: str) -> int:
        """Estimated tokens of `text`: no tokenizer, no download."""
        return count_text(text) if self.custom_get_token_ids is None else len(self.custom_get_token_ids(text))

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of `custom_get_token_ids`. Raises NotImplementedError without one: each model has a tokenizer of its
        own, and core would count with another one's, after a download."""
        if self.custom_get_token_ids is None:
            raise NotImplementedError(
                f"There is no tokenizer for {self.model_name} here, so tokens have no ids. Use `get_num_tokens`, which "
                "estimates offline, or give the model `custom_get_token_ids`."
            )
        return self.custom_get_token_ids(text)

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
                client = self._client()
                completion = client.chat(call.body, **report.begin(), **_options(call))
        except (KeyboardInterrupt, SystemExit) as exc:
            report.attach(exc)
            raise
        return to_result(completion, model_name=call.served_model_name(completion), is_whole=self.whole_receipts)

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
                completion = await client.chat(call.body, **report.begin(), **_options(call))
        except asyncio.CancelledError as exc:
            report.attach(exc)
            raise
        return to_result(completion, model_name=call.served_model_name(completion), is_whole=self.whole_receipts)

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
                client = self._client()
                stream = client.stream(call.body, **report.begin(), **_options(call))
                report.opened(stream)
                with closing(stream):
                    for delta in stream:
                        if not delta.is_empty:
                            yield to_chunk(delta)
            completion = stream.completion
            yield self._terminal_chunk(call, completion, report, kwargs)
        except (KeyboardInterrupt, SystemExit) as exc:
            report.attach(exc)
            raise

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
                stream = await client.stream(call.body, **report.begin(), **_options(call))
                report.opened(stream)
                async with aclosing(stream):
                    async for delta in stream:
                        if not delta.is_empty:
                            yield to_chunk(delta)
            completion = stream.completion
            yield self._terminal_chunk(call, completion, report, kwargs)
        except asyncio.CancelledError as exc:
            report.attach(exc)
            raise

    def _terminal_chunk(
        self, call: ChatCall, completion: Any, report: SettlementReport, kwargs: Mapping[str, Any]
    ) -> ChatGenerationChunk:
        return to_terminal_chunk(
            completion,
            report.receipt,
            model_name=call.served_model_name(completion),
            with_usage=kwargs.get("stream_usage", self.stream_usage),
            is_whole=self.whole_receipts,
        )

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        """As core decides: it asks each handler, slowly, whether it streams. Ours do not, and often they are all."""
        if run_manager is not None and are_ours(run_manager.handlers):
            run_manager = None
        return super()._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> ChatCall:
        if kwargs:
            kwargs = checked_keywords(type(self), kwargs)
        fields = {
            "model": self.model_name,
            **self._body_fields(),
            "settlement_mode": self.settlement_mode,
            "timeout": self.timeout,
            "stream_chunk_timeout": self.stream_chunk_timeout,
            "extra_headers": self.default_headers,
            "extra_query": self.default_query,
            "extra_body": self.extra_body,
            **({} if stop is None else {"stop": stop}),
        }
        # A field that nobody set does not hide what `model_kwargs` says.
        defaults = {**self.model_kwargs, **{name: value for name, value in fields.items() if value is not None}}
        return build_call(messages, defaults=defaults, kwargs=kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        """What `generate` says of several prompts: their token counts added up, as ChatOpenAI has it."""
        return combined_outputs([output for output in llm_outputs if output])

    # Connections

    def _client(self) -> Any:
        return self.client if self.client is not None else self.connections.client(self._route())

    async def _async_client(self) -> Any:
        if self.async_client is not None:
            return self.async_client
        return await self.connections.async_client(self._route())

    def _route(self) -> Route:
        return Route(
            private_key=self.private_key,
            network=self.network,
            rpc_url=self.rpc_url,
            web3=self.web3,
            policy=self.spend_policy,
            ledger=self.ledger,
            payments=self.payments,
            base_url=self.base_url,
            max_retries=self.max_retries,
            verify_tee=self.verify_tee,
            http_client=self.http_client,
            http_async_client=self.http_async_client,
        )

    def close(self) -> None:
        """Close what no other model uses; the next call opens it again."""
        self.connections.close()

    async def aclose(self) -> None:
        """`close`, for the connections of the running event loop too."""
        await self.connections.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.close()
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> Literal[False]:
        await self.aclose()
        return False


for _method in (ChatOpenGradient._generate, ChatOpenGradient._agenerate):
    # Core asks for their parameters in each call: they need not be worked out again.
    setattr(_method, "__signature__", inspect.signature(_method))  # noqa: B010  (mypy knows no such attribute)


def _options(call: ChatCall) -> dict[str, Any]:
    return {
        "settlement_mode": call.settlement_mode,
        "timeout_s": call.timeout_s,
        "chunk_timeout_s": call.chunk_timeout_s,
        "headers": call.headers,
        "query": call.query,
    }
