"""Query engines, chat engines, routers: LlamaIndex's own prompts, answered by a capable model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest
from llama_index.core import Document, MockEmbedding, SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import run

RESPONSE_MODES: Final = (
    ResponseMode.COMPACT,
    ResponseMode.REFINE,
    ResponseMode.TREE_SUMMARIZE,
    ResponseMode.SIMPLE_SUMMARIZE,
    ResponseMode.ACCUMULATE,
    ResponseMode.GENERATION,
)
BRIDGES: Final = (
    "The Kestrel Bridge was opened in 1911. It crosses the river Arn and is 212 metres long.",
    "The Heron Bridge was opened in 1934. It is painted green.",
)
FERRIES: Final = ("The ferry Otter carries 40 passengers and sails every hour from Port Lund.",)
QUESTION: Final = "When was the Kestrel Bridge opened?"
EMBEDDING: Final = MockEmbedding(embed_dim=4)
"""Every text is as near as any other: retrieval gives all of the few documents, and no model is downloaded."""


def documents(texts: Sequence[str]) -> list[Document]:
    """The texts as documents."""
    return [Document(text=text) for text in texts]


def query_engine(llm: Any, texts: Sequence[str], mode: ResponseMode, *, streaming: bool = False) -> BaseQueryEngine:
    """A query engine over the texts."""
    index = VectorStoreIndex.from_documents(documents(texts), embed_model=EMBEDDING)
    return index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=5, streaming=streaming)


def topic_tools(llm: Any) -> list[QueryEngineTool]:
    """One query engine about bridges, one about ferries."""
    return [
        QueryEngineTool.from_defaults(
            SummaryIndex.from_documents(documents(texts)).as_query_engine(llm=llm),
            name=name,
            description=f"Useful for questions about {name}.",
        )
        for name, texts in (("bridges", BRIDGES), ("ferries", FERRIES))
    ]


def router(llm: Any, selector: Any) -> RouterQueryEngine:
    """A router between bridges and ferries."""
    return RouterQueryEngine.from_defaults(topic_tools(llm), llm=llm, selector=selector)


def sub_question_engine(llm: Any, *, use_async: bool) -> SubQuestionQueryEngine:
    """An engine that splits questions between bridges and ferries."""
    return SubQuestionQueryEngine.from_defaults(
        topic_tools(llm),
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        verbose=False,
        use_async=use_async,
    )


def chat_engine(llm: Any, kind: str) -> Any:
    """A chat engine of one of the three kinds, over the texts about bridges."""
    retriever = VectorStoreIndex.from_documents(documents(BRIDGES), embed_model=EMBEDDING).as_retriever(
        similarity_top_k=5
    )
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    match kind:
        case "simple":
            return SimpleChatEngine.from_defaults(llm=llm, memory=memory)
        case "context":
            return ContextChatEngine.from_defaults(retriever=retriever, llm=llm, memory=memory)
        case _:
            return CondensePlusContextChatEngine.from_defaults(retriever=retriever, llm=llm, memory=memory)


CHAT_ENGINES: Final = ("simple", "context", "condense_plus_context")
CHAT_FORMS: Final = ("chat", "achat", "stream_chat", "astream_chat")


def converse(engine: Any, form: str, *questions: str) -> list[str]:
    """What a chat engine answers to several messages in a row."""
    return run(converse_async(engine, form, *questions)) if form.startswith("a") else _converse(engine, form, questions)


def _converse(engine: Any, form: str, questions: Sequence[str]) -> list[str]:
    answers = []
    for question in questions:
        answer = getattr(engine, form)(question)
        answers.append("".join(answer.response_gen) if form == "stream_chat" else str(answer))
    return answers


async def converse_async(engine: Any, form: str, *questions: str) -> list[str]:
    """`converse`, on a loop that is running already."""
    answers = []
    for question in questions:
        answer = await getattr(engine, form)(question)
        if form == "astream_chat":
            answers.append("".join([piece async for piece in answer.async_response_gen()]))
            # the engine writes its memory in a task of its own
            await asyncio.sleep(0)
        else:
            answers.append(str(answer))
    return answers


class EngineTests(LLMTestBase):
    """The engines of LlamaIndex on top of the LLM, sync and async, streaming and not."""

    @pytest.mark.parametrize("mode", RESPONSE_MODES, ids=lambda mode: mode.value)
    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_query_engines_answer_in_every_response_mode(self, llm: Any, mode: ResponseMode, *, is_async: bool) -> None:
        engine = query_engine(llm, BRIDGES, mode)
        answer = run(engine.aquery(QUESTION)) if is_async else engine.query(QUESTION)
        if mode is ResponseMode.GENERATION:  # asks the model without the documents
            assert str(answer)
        else:
            assert "1911" in str(answer)

    @pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE], ids=lambda mode: mode.value)
    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_query_engines_stream(self, llm: Any, mode: ResponseMode, *, is_async: bool) -> None:
        engine = query_engine(llm, BRIDGES, mode, streaming=True)

        async def read() -> str:
            answer: Any = await engine.aquery(QUESTION)
            return "".join([piece async for piece in answer.async_response_gen()])

        if is_async:
            text = run(read())
        else:
            answer: Any = engine.query(QUESTION)
            text = "".join(answer.response_gen)
        assert "1911" in text

    @pytest.mark.parametrize(
        "selector", [LLMSingleSelector, LLMMultiSelector, PydanticSingleSelector], ids=lambda cls: cls.__name__
    )
    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_routers_choose_the_engine(self, llm: Any, selector: Any, *, is_async: bool) -> None:
        engine = router(llm, selector.from_defaults(llm=llm))
        question = "How many passengers does the ferry Otter carry?"
        answer = run(engine.aquery(question)) if is_async else engine.query(question)
        assert "40" in str(answer)

    @pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
    def test_sub_questions_are_asked_and_answered(self, llm: Any, *, use_async: bool) -> None:
        engine = sub_question_engine(llm, use_async=use_async)
        question = "When was the Kestrel Bridge opened, and how many passengers does the ferry Otter carry?"
        answer = run(engine.aquery(question)) if use_async else engine.query(question)
        assert len(answer.source_nodes) >= 2
        told = " ".join([str(answer), *(node.get_content() for node in answer.source_nodes)])
        assert "1911" in told
        assert "40" in told

    @pytest.mark.parametrize("kind", CHAT_ENGINES)
    @pytest.mark.parametrize("form", CHAT_FORMS)
    def test_chat_engines_hold_a_conversation(self, llm: Any, kind: str, form: str) -> None:
        engine = chat_engine(llm, kind)
        first, second = converse(engine, form, QUESTION, "And which river does it cross?")
        assert first
        assert second
        if kind != "simple":
            assert "1911" in first
        roles = [message.role.value for message in engine.chat_history if isinstance(message, ChatMessage)]
        assert roles == ["user", "assistant", "user", "assistant"]
