"""`OpenGradient`: a LlamaIndex LLM whose calls are paid over x402 and leave receipts.

It puts the framework's vocabulary around the gateway client: messages out (`messages`), responses back
(`responses`), tools (`tools`), structured prediction (`structured`), receipts as events (`events`). Paying,
streaming, retrying and remembering are the gateway client's; nothing here signs, repeats a call, or reads a
chain.

Each public call method announces itself to the framework and then calls a private one that does the work: if
`complete` called `chat`, one payment would be announced as two calls. It is long because the framework asks for
every call in eight forms, with signatures of its own; no form holds logic that another one repeats.
"""

# ruff: noqa: FBT001, FBT002  # LlamaIndex's signatures take booleans by position

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.llms.generic_utils import prompt_to_messages
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools.calling import acall_tool_with_selection, call_tool_with_selection
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from llama_index_opengradient.events import ReceiptReporter
from llama_index_opengradient.handlers import SettlementCallbackHandler
from llama_index_opengradient.messages import wire_messages
from llama_index_opengradient.model import PaidModel
from llama_index_opengradient.observed import (
    aconverted,
    astarted,
    chat_events,
    completion_events,
    converted,
    observed_astream,
    observed_stream,
    started,
)
from llama_index_opengradient.responses import ChatStream, chat_response, completion_response
from llama_index_opengradient.structured import OutputT, agrowing, growing, output_kwargs, parse_output, wire_keywords
from llama_index_opengradient.tools import (
    answer_of,
    keep_first_call,
    not_found,
    restore_names,
    selections,
    tool_definition,
)
from opengradient_x402.gateway.request import chosen, wire_tool_names

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool, ToolOutput

    from opengradient_x402.gateway.clients import Connections
    from opengradient_x402.gateway.streams import AsyncCompletionStream, CompletionStream

_dispatcher = get_dispatcher(__name__)

_CALL_OPTIONS: Final = ("settlement_mode", "timeout", "headers")
"""Keyword arguments of one call that go to the gateway client instead of into the request's body."""


class OpenGradient(PaidModel):
    """Any model of the OpenGradient network, paid per call.

    ```python
    from llama_index_opengradient import OpenGradient

    llm = OpenGradient(model="openai/gpt-5")  # OG_PRIVATE_KEY and OG_NETWORK come from the environment
    print(llm.complete("What is a TEE?"))
    ```

    The environment is read once, when the model is made; nothing is opened or checked before the first call. One
    instance serves any number of threads, tasks and event loops. Errors are those of `opengradient_x402.errors`:
    each says what happened to the money and has the receipt if there is one. No layer of the framework repeats
    a call after a signature has left.
    """

    # -- calls

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The body of a request, and the gateway client's options for it. Raises ValueError before anything is paid."""
        self._check_call(kwargs)
        if (mode := kwargs.pop("x402_settlement_mode", None)) is not None:  # what the OpenGradient SDK calls it
            kwargs["settlement_mode"] = mode
        options = {name: kwargs.pop(name) for name in _CALL_OPTIONS if kwargs.get(name) is not None}
        options["timeout_s"] = options.pop("timeout", self.timeout)
        if self._calls_group:
            options["id_group"] = self._calls_group
        options.setdefault("settlement_mode", self.settlement_mode or self._environment.settlement_mode)
        # What OpenAI's SDK calls them.
        headers = {**(self.default_headers or {}), **(kwargs.pop("extra_headers", None) or {})}
        options["headers"] = {**headers, **options.get("headers", {})}
        options["query"] = kwargs.pop("extra_query", None)
        extra_body = kwargs.pop("extra_body", None) or {}
        kwargs.pop("strict", None)  # of tools, which have it by now
        body = {
            "model": self.model,
            "messages": wire_messages(messages),
            "web_search": self.web_search or None,
            **self.additional_kwargs,
            **self._body_fields(),
            **wire_keywords(kwargs),
            **extra_body,
        }
        return body, options

    def _reporter(self) -> ReceiptReporter:
        handlers = self.callback_manager.handlers
        return ReceiptReporter(
            handler.on_settlement for handler in handlers if isinstance(handler, SettlementCallbackHandler)
        )

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        body, options = self._request(messages, kwargs)
        completion = self._client().chat(body, **self._reporter().options, **options)
        return chat_response(completion, is_whole=self.whole_receipts)

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        body, options = self._request(messages, kwargs)
        client = await self._async_client()
        completion = await client.chat(body, **self._reporter().options, **options)
        return chat_response(completion, is_whole=self.whole_receipts)

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Opens the stream at once, so that its payment is reported before the first chunk is read."""
        body, options = self._request(messages, kwargs)
        report = self._reporter()
        stream = self._client().stream(body, **report.options, **options)
        report(stream.receipt)
        return started(_responses(stream, ChatStream(is_whole=self.whole_receipts), self._connections))

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        body, options = self._request(messages, kwargs)
        report = self._reporter()
        client = await self._async_client()
        stream = await client.stream(body, **report.options, **options)
        report(stream.receipt)
        return await astarted(_aresponses(stream, ChatStream(is_whole=self.whole_receipts), self._connections))

    def _stream_complete(self, prompt: str, formatted: bool, **kwargs: Any) -> CompletionResponseGen:
        return converted(self._stream_chat(self._as_messages(prompt, formatted), **kwargs), completion_response)

    async def _astream_complete(self, prompt: str, formatted: bool, **kwargs: Any) -> CompletionResponseAsyncGen:
        responses = await self._astream_chat(self._as_messages(prompt, formatted), **kwargs)
        return await aconverted(responses, completion_response)

    def _as_messages(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        to_prompt = self.completion_to_prompt
        return prompt_to_messages(prompt if formatted or to_prompt is None else to_prompt(prompt))

    @chat_events
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One answer to a conversation; `receipt_of(response)` is its receipt, `raw["x402"]` the short form."""
        return self._chat(messages, **kwargs)

    @chat_events
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`."""
        return await self._achat(messages, **kwargs)

    @completion_events
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """One answer to a prompt, which goes out as a user message."""
        return completion_response(self._chat(self._as_messages(prompt, formatted), **kwargs))

    @completion_events
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`."""
        return completion_response(await self._achat(self._as_messages(prompt, formatted), **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer in chunks: each holds the message so far, and the last one also usage and receipt."""
        return observed_stream(self, chat_events, self._stream_chat, messages, kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`."""
        return await observed_astream(self, chat_events, self._astream_chat, messages, kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """As `stream_chat`, for a prompt."""
        kwargs["formatted"] = formatted
        return observed_stream(self, completion_events, self._stream_complete, prompt, kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`."""
        kwargs["formatted"] = formatted
        return await observed_astream(self, completion_events, self._astream_complete, prompt, kwargs)

    # -- tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002 - core's signature
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or ())
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        prepared: dict[str, Any] = {"messages": messages, **kwargs}
        if tools:
            names = wire_tool_names([tool.metadata.get_name() for tool in tools])
            strict = prepared.pop("strict", self.strict or None)
            if not allow_parallel_tool_calls:
                prepared["parallel_tool_calls"] = False
            definitions = [tool_definition(tool, strict=strict) for tool in tools]
            prepared.update(chosen(definitions, tool_choice or tool_required, names))
        return prepared

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,  # noqa: ARG002 - core's signature
    ) -> ChatResponse:
        """The response as the caller asked for it: its own tool names, one call if one was allowed.

        Gateways need not forward `parallel_tool_calls`, and the wire cannot carry every name.
        """
        if not allow_parallel_tool_calls:
            response = keep_first_call(response)
        return restore_names(response, [tool.metadata.get_name() for tool in tools])

    def stream_chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponseGen:
        """As core's, but with each chunk checked: the caller's tool names, and one call if one was allowed."""
        conform = partial(
            self._validate_chat_with_tools_response,
            tools=tools,
            allow_parallel_tool_calls=kwargs.get("allow_parallel_tool_calls", False),
        )
        return converted(super().stream_chat_with_tools(tools, *args, **kwargs), conform)

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat_with_tools`."""
        conform = partial(
            self._validate_chat_with_tools_response,
            tools=tools,
            allow_parallel_tool_calls=kwargs.get("allow_parallel_tool_calls", False),
        )
        return await aconverted(await super().astream_chat_with_tools(tools, *args, **kwargs), conform)

    def get_tool_calls_from_response(
        self,
        response: ChatResponse,
        error_on_no_tool_call: bool = True,
        **kwargs: Any,  # noqa: ARG002 - core's signature
    ) -> list[ToolSelection]:
        """The tool calls of a response, or of a stream's chunk as far as they have come.

        Raises ValueError when there is none and one was needed.
        """
        found = selections(response)
        if not found and error_on_no_tool_call:
            raise ValueError(
                f"The model called no tool; it said {response.message.content!r}. The call was made and is paid for. "
                "Pass error_on_no_tool_call=False if an answer in words will do."
            )
        return found

    def predict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        error_on_no_tool_call: bool = True,
        error_on_tool_error: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Ask once, and run the tools that the model calls. A call that cannot be run gives a result that says why."""
        options = {"user_msg": user_msg, "chat_history": chat_history, "verbose": verbose, **kwargs}
        if not self.metadata.is_function_calling_model:
            return super().predict_and_call(tools, **options)
        response = self.chat_with_tools(tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **options)
        calls = self.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call)
        outputs = [not_found(call, tools) or call_tool_with_selection(call, tools, verbose=verbose) for call in calls]
        return answer_of(outputs, response, error_on_tool_error=error_on_tool_error)

    async def apredict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        error_on_no_tool_call: bool = True,
        error_on_tool_error: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """As `predict_and_call`."""
        options = {"user_msg": user_msg, "chat_history": chat_history, "verbose": verbose, **kwargs}
        if not self.metadata.is_function_calling_model:
            return await super().apredict_and_call(tools, **options)
        response = await self.achat_with_tools(tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **options)
        calls = self.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call)

        async def run(call: ToolSelection) -> ToolOutput:
            return not_found(call, tools) or await acall_tool_with_selection(call, tools, verbose=verbose)

        outputs = list(await asyncio.gather(*map(run, calls)))
        return answer_of(outputs, response, error_on_tool_error=error_on_tool_error)

    # -- structured prediction

    def _predicts_itself(self) -> bool:
        by_tool = self.pydantic_program_mode in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)
        return by_tool and (self.structured_by == "response_format" or self.metadata.is_function_calling_model)

    def _structured_request(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """The messages and the keyword arguments of the chat call that predicts an `output_cls`."""
        _dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        by_format = self.structured_by == "response_format"
        return messages, output_kwargs(output_cls, llm_kwargs, by_format=by_format, strict=self.strict or None)

    def structured_predict(
        self,
        output_cls: type[OutputT],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> OutputT:
        """An `output_cls` made from the answer. Raises ValueError when the answer is not one."""
        if not self._predicts_itself():
            predicted: OutputT = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return predicted
        messages, kwargs = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)
        output = parse_output(self.chat(messages, **kwargs), output_cls)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    async def astructured_predict(
        self,
        output_cls: type[OutputT],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> OutputT:
        """As `structured_predict`."""
        if not self._predicts_itself():
            predicted: OutputT = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return predicted
        messages, kwargs = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)
        output = parse_output(await self.achat(messages, **kwargs), output_cls)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    def stream_structured_predict(
        self,
        output_cls: type[OutputT],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """The object as it grows: a model of the members so far, and at the end an `output_cls`."""
        if not self._predicts_itself():
            yield from super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        messages, kwargs = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)
        yield from growing(self.stream_chat(messages, **kwargs), output_cls)

    async def astream_structured_predict(
        self,
        output_cls: type[OutputT],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """As `stream_structured_predict`."""
        if not self._predicts_itself():
            return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, kwargs = self._structured_request(output_cls, prompt, llm_kwargs, prompt_args)
        return agrowing(await self.astream_chat(messages, **kwargs), output_cls)


def _responses(stream: CompletionStream, state: ChatStream, _connections: Connections) -> Generator[Any, None, None]:
    """The chunks of an open stream, after one empty yield (see `started`).

    Holding the connections keeps the ledger open until the stream has ended, also when its model was dropped.
    """
    with closing(stream):
        yield
        for delta in stream:
            if (response := state.feed(delta)) is not None:
                yield response
        if stream.completion is not None:
            yield state.finish(stream.completion)


async def _aresponses(
    stream: AsyncCompletionStream, state: ChatStream, _connections: Connections
) -> AsyncGenerator[Any, None]:
    """As `_responses`."""
    async with aclosing(stream):
        yield
        async for delta in stream:
            if (response := state.feed(delta)) is not None:
                yield response
        if stream.completion is not None:
            yield state.finish(stream.completion)
