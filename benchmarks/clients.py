"""The clients that are compared: what each needs to be installed, and how it is asked. Imports of theirs stay inside.

A client is asked in five ways: a whole answer, a stream, a stream of tool calls, each sync and async, and an agent
that calls two tools. Only what a user would write is called here, with the defaults that a user would get.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
MODEL = "openai/gpt-5"
_KEY = "0x" + "11" * 32  # of nobody's wallet: the server that takes its signatures settles nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One column of the table. `face` is what it is compared with: `langchain` or `llamaindex`."""

    name: str
    face: str
    requirements: tuple[str, ...]
    is_paid: bool
    make: Callable[[dict[str, Any]], Any]
    lacks: tuple[str, ...] = ()
    """Works that it cannot do."""
    is_slow: bool = False
    """Whether it is asked for half of each work: with many connections it needs longer than all others together."""


class LangChain:
    """A LangChain chat model; `amodel` for async calls, if one model cannot do both in a process."""

    def __init__(self, model: Any, amodel: Any = None) -> None:
        self._model = model
        self._amodel = amodel or model
        self._with_tools: Any = None
        self._agent: Any = None

    def text(self, prompt: str) -> None:
        self._model.invoke(prompt)

    async def atext(self, prompt: str) -> None:
        await self._amodel.ainvoke(prompt)

    def stream(self, prompt: str) -> Iterator[Any]:
        return self._model.stream(prompt)  # type: ignore[no-any-return]

    def astream(self, prompt: str) -> AsyncIterator[Any]:
        return self._amodel.astream(prompt)  # type: ignore[no-any-return]

    def tools(self, prompt: str) -> Iterator[Any]:
        return self._bound().stream(prompt)  # type: ignore[no-any-return]

    def atools(self, prompt: str) -> AsyncIterator[Any]:
        return self._bound().astream(prompt)  # type: ignore[no-any-return]

    def agent(self) -> None:
        self._made_agent().invoke({"messages": [("user", "agent")]})

    async def aagent(self) -> None:
        await self._made_agent().ainvoke({"messages": [("user", "agent")]})

    def _bound(self) -> Any:
        if self._with_tools is None:
            self._with_tools = self._model.bind_tools([weather])
        return self._with_tools

    def _made_agent(self) -> Any:
        if self._agent is None:
            from langchain.agents import create_agent

            self._agent = create_agent(self._model, [weather])
        return self._agent


class LlamaIndex:
    """A LlamaIndex LLM."""

    def __init__(self, llm: Any) -> None:
        from llama_index.core.llms import ChatMessage
        from llama_index.core.tools import FunctionTool

        self._llm = llm
        self._message = ChatMessage
        self._tool = FunctionTool.from_defaults(weather)

    def text(self, prompt: str) -> None:
        self._llm.chat([self._message(role="user", content=prompt)])

    async def atext(self, prompt: str) -> None:
        await self._llm.achat([self._message(role="user", content=prompt)])

    def stream(self, prompt: str) -> Iterator[Any]:
        return self._llm.stream_chat([self._message(role="user", content=prompt)])  # type: ignore[no-any-return]

    async def astream(self, prompt: str) -> AsyncIterator[Any]:
        async for chunk in await self._llm.astream_chat([self._message(role="user", content=prompt)]):
            yield chunk

    def tools(self, prompt: str) -> Iterator[Any]:
        return self._llm.stream_chat_with_tools([self._tool], user_msg=prompt)  # type: ignore[no-any-return]

    async def atools(self, prompt: str) -> AsyncIterator[Any]:
        async for chunk in await self._llm.astream_chat_with_tools([self._tool], user_msg=prompt):
            yield chunk


class Httpx:
    """httpx itself: bytes out, lines in, nothing parsed. What the others cannot be faster than over httpx."""

    def __init__(self, url: str) -> None:
        import httpx

        self._url = url + "/v1/chat/completions"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.Client(limits=limits)
        self._aclient = httpx.AsyncClient(limits=limits)

    def _body(self, prompt: str, *, is_stream: bool) -> dict[str, Any]:
        return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": is_stream}

    def text(self, prompt: str) -> None:
        self._client.post(self._url, json=self._body(prompt, is_stream=False)).json()

    async def atext(self, prompt: str) -> None:
        (await self._aclient.post(self._url, json=self._body(prompt, is_stream=False))).json()

    def stream(self, prompt: str) -> Iterator[Any]:
        with self._client.stream("POST", self._url, json=self._body(prompt, is_stream=True)) as response:
            yield from (line for line in response.iter_lines() if line)

    async def astream(self, prompt: str) -> AsyncIterator[Any]:
        async with self._aclient.stream("POST", self._url, json=self._body(prompt, is_stream=True)) as response:
            async for line in response.aiter_lines():
                if line:
                    yield line


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def _ours(server: dict[str, Any]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="opengradient-benchmark-"))
    file = folder / "network.json"
    file.write_text(json.dumps(server["network"]))
    return {"model": MODEL, "private_key": _KEY, "network": str(file), "ledger": str(folder / "ledger.sqlite")}


def _chat_open_gradient(server: dict[str, Any]) -> LangChain:
    from langchain_opengradient import ChatOpenGradient

    return LangChain(ChatOpenGradient(**_ours(server)))


def _open_gradient(server: dict[str, Any]) -> LlamaIndex:
    from llama_index_opengradient import OpenGradient

    return LlamaIndex(OpenGradient(**_ours(server)))


def _chat_openai(server: dict[str, Any]) -> LangChain:
    from langchain_openai import ChatOpenAI

    return LangChain(ChatOpenAI(model=MODEL, base_url=server["unpaid"] + "/v1", api_key="none", stream_usage=True))  # type: ignore[arg-type, unused-ignore]


def _openai_like(server: dict[str, Any]) -> LlamaIndex:
    from llama_index.llms.openai_like import OpenAILike

    options = {"is_chat_model": True, "is_function_calling_model": True}
    return LlamaIndex(OpenAILike(model=MODEL, api_base=server["unpaid"] + "/v1", api_key="none", **options))


def _sdk_adapter(server: dict[str, Any]) -> LangChain:
    import opengradient as og

    def model() -> Any:
        client = og.LLM.from_url(private_key=_KEY, llm_server_url=server["paid"])
        return og.agents.langchain_adapter(client=client, model_cid=MODEL)

    return LangChain(model(), model())


def _httpx(server: dict[str, Any]) -> Httpx:
    return Httpx(server["unpaid"])


_LANGCHAIN = ("langchain==1.5.2", "langchain-core==1.8.3")
_LLAMA_INDEX = ("llama-index-core==0.14.25",)
_NOT_WITH_THE_SDK = ("threads 64", "tool delta", "tool delta, async", "agent", "agent, async")
"""Its connections belong to one event loop, and each sync call has a new one; it streams no tool calls."""

CLIENTS = (
    Client(
        name="ours, LangChain",
        face="langchain",
        requirements=(*_LANGCHAIN, f"{PROJECT}[langchain]"),
        is_paid=True,
        make=_chat_open_gradient,
    ),
    Client(
        name="ours[fast], LangChain",
        face="langchain",
        requirements=(*_LANGCHAIN, f"{PROJECT}[langchain,fast]"),
        is_paid=True,
        make=_chat_open_gradient,
    ),
    Client(
        name="ChatOpenAI",
        face="langchain",
        requirements=(*_LANGCHAIN, "langchain-openai==1.7.4"),
        is_paid=False,
        make=_chat_openai,
    ),
    Client(
        name="SDK adapter",
        face="langchain",
        requirements=(*_LANGCHAIN, "opengradient==1.1.4", "og-x402==0.0.2.dev2"),
        is_paid=True,
        make=_sdk_adapter,
        lacks=_NOT_WITH_THE_SDK,
        is_slow=True,
    ),
    Client(
        name="ours, LlamaIndex",
        face="llamaindex",
        requirements=(*_LLAMA_INDEX, f"{PROJECT}[llama-index]"),
        is_paid=True,
        make=_open_gradient,
    ),
    Client(
        name="ours[fast], LlamaIndex",
        face="llamaindex",
        requirements=(*_LLAMA_INDEX, f"{PROJECT}[llama-index,fast]"),
        is_paid=True,
        make=_open_gradient,
    ),
    Client(
        name="OpenAILike",
        face="llamaindex",
        requirements=(*_LLAMA_INDEX, "llama-index-llms-openai-like==0.8.1", "llama-index-llms-openai==0.8.3"),
        is_paid=False,
        make=_openai_like,
    ),
    Client(name="httpx alone", face="bare", requirements=("httpx==0.28.1",), is_paid=False, make=_httpx, is_slow=True),
)
"""The peers come first among those of their face that are free: ratios are to them."""


def client_named(name: str) -> Client:
    """One of `CLIENTS`."""
    return next(client for client in CLIENTS if client.name == name)
