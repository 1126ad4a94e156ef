"""Messages: what goes out, block by block and role by role, and what must not."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import CHAT, CHAT_STREAMS, ask, user
from llamaindex.suite.server import Reply, ScriptedServer
from support.matrix import one_in

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = (
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00"
    b"\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x00\x00\x00\x00"
)
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"

BLOCKS: dict[str, tuple[Any, str]] = {
    "text": (TextBlock(text="plain words"), "plain words"),
    "image": (ImageBlock(image=PNG), base64.b64encode(PNG).decode()),
    "image URL": (ImageBlock(url="https://example.com/cat.png"), "https://example.com/cat.png"),
    "audio": (AudioBlock(audio=WAV, format="wav"), base64.b64encode(WAV).decode()),
    "document": (
        DocumentBlock(data=PDF, document_mimetype="application/pdf", title="deed.pdf"),
        base64.b64encode(PDF).decode(),
    ),
    "thinking": (ThinkingBlock(content="carry the one"), "carry the one"),
    "cache point": (CachePoint(cache_control=CacheControl(type="ephemeral")), "ephemeral"),
    "citable": (CitableBlock(title="Law", source="law.txt", content="quotable words"), "quotable words"),
    "tool call": (ToolCallBlock(tool_call_id="call_9", tool_name="add", tool_kwargs={"a": 41}), "41"),
}
ROLES = [role for role in MessageRole if role is not MessageRole.FUNCTION]


def conversation(role: MessageRole, block: Any) -> list[ChatMessage]:
    """A conversation in which a message of this role holds text and then this block."""
    extra = {"tool_call_id": "call_1"} if role is MessageRole.TOOL else {}
    message = ChatMessage(role=role, blocks=[TextBlock(text="Before it:"), block], additional_kwargs=extra)
    if role is MessageRole.TOOL:
        call = ToolCallBlock(tool_call_id="call_1", tool_name="look", tool_kwargs={})
        return [user("Look."), ChatMessage(role="assistant", blocks=[call]), message]
    if role in (MessageRole.SYSTEM, MessageRole.DEVELOPER, MessageRole.USER):
        return [message, user("Go on.")] if role is not MessageRole.USER else [message]
    return [user("Hello."), message, user("Go on.")]


class MessageTests(LLMTestBase):
    """The request's messages and members, and the response's."""

    @pytest.mark.parametrize("form", CHAT)
    def test_roles_and_texts_go_out_in_order(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        history = [
            ChatMessage(role="system", content="Be brief."),
            user("One?"),
            ChatMessage(role="assistant", content="One."),
            user("Two?"),
        ]
        ask(scripted_llm, form, history)
        sent = [(message["role"], message["content"]) for message in script.last_request["messages"]]
        assert sent == [("system", "Be brief."), ("user", "One?"), ("assistant", "One."), ("user", "Two?")]

    @pytest.mark.parametrize("form", CHAT)
    def test_the_caller_s_history_is_not_touched(self, scripted_llm: Any, form: str) -> None:
        call = ToolCallBlock(tool_call_id="", tool_name="add", tool_kwargs={"a": 1})
        history = [
            ChatMessage(role="user", blocks=[TextBlock(text="See:"), ImageBlock(image=PNG)]),
            ChatMessage(role="assistant", blocks=[call]),
            ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "call_1", "name": "add"}),
        ]
        before = copy.deepcopy(history)
        ask(scripted_llm, form, history)
        assert history == before
        assert len(history) == 3

    @pytest.mark.parametrize("role", one_in(3, ROLES), ids=lambda role: role.value)
    @pytest.mark.parametrize("kind", BLOCKS)
    def test_no_block_is_dropped_in_silence(
        self, scripted_llm: Any, script: ScriptedServer, kind: str, role: MessageRole
    ) -> None:
        block, trace = BLOCKS[kind]
        try:
            scripted_llm.chat(conversation(role, block))
        except (ValueError, TypeError, NotImplementedError):
            assert not script.requests, "a refusal comes before the request"
            return
        sent = json.dumps(script.last_request["messages"])
        assert trace in sent, f"the {kind} block was dropped"
        assert "Before it:" in sent

    @pytest.mark.parametrize("kind", ["text", "image", "image URL", "audio", "document"])
    def test_a_user_message_carries_every_medium(self, scripted_llm: Any, script: ScriptedServer, kind: str) -> None:
        block, trace = BLOCKS[kind]
        scripted_llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="See:"), block])])
        assert trace in json.dumps(script.last_request["messages"])

    def test_images_of_tool_results_follow_as_a_user_message(self, scripted_llm: Any, script: ScriptedServer) -> None:
        calls = [ToolCallBlock(tool_call_id=f"call_{at}", tool_name="look", tool_kwargs={}) for at in (1, 2)]
        results = [
            ChatMessage(
                role="tool",
                blocks=[TextBlock(text=f"picture {at}"), ImageBlock(image=PNG)],
                additional_kwargs={"tool_call_id": f"call_{at}"},
            )
            for at in (1, 2)
        ]
        scripted_llm.chat([user("Look twice."), ChatMessage(role="assistant", blocks=calls), *results])
        sent = script.last_request["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
        assert [message["content"] for message in sent[2:4]] == ["picture 1", "picture 2"]
        assert [item["type"] for item in sent[4]["content"]].count("image_url") == 2

    def test_private_notes_of_a_message_stay_private(self, scripted_llm: Any, script: ScriptedServer) -> None:
        noted = ChatMessage(role="user", content="Hi.", additional_kwargs={"memory_id": "m-1", "secret_note": "psst"})
        scripted_llm.chat([noted])
        sent = json.dumps(script.last_request)
        assert "memory_id" not in sent
        assert "psst" not in sent

    @pytest.mark.parametrize("form", CHAT)
    def test_nulls_are_left_out_of_the_request(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        call = ToolCallBlock(tool_call_id="call_1", tool_name="now", tool_kwargs={})
        result = ChatMessage(role="tool", content="12:00", additional_kwargs={"tool_call_id": "call_1"})
        ask(scripted_llm, form, [user("Time?"), ChatMessage(role="assistant", blocks=[call]), result])
        assert set(nulls_in(script.last_request)) <= {".messages[1].content"}, "null beside tool calls is OpenAI's form"

    @pytest.mark.parametrize("form", CHAT)
    def test_settings_of_one_call_win(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        ask(scripted_llm, form, [user("Hi.")], temperature=0.125, max_tokens=17)
        assert script.last_request["temperature"] == 0.125
        assert script.last_request["max_tokens"] == 17

    @pytest.mark.parametrize("form", CHAT)
    def test_reasoning_comes_back_as_a_thinking_block(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text="42.", extra={"reasoning_content": "six times seven"}))
        pieces = ask(scripted_llm, form, [user("6*7?")])
        message = pieces[-1].message
        thoughts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock)]
        assert thoughts == ["six times seven"]
        assert message.content == "42."

    @pytest.mark.parametrize("form", CHAT_STREAMS)
    def test_reasoning_streams_as_thinking_deltas(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text="42.", extra={"reasoning_content": "six times seven"}))
        pieces = ask(scripted_llm, form, [user("6*7?")])
        thoughts = "".join(piece.additional_kwargs.get("thinking_delta") or "" for piece in pieces)
        assert thoughts == "six times seven"

    @pytest.mark.parametrize("form", CHAT)
    def test_a_response_is_plain_json(self, scripted_llm: Any, form: str) -> None:
        last = ask(scripted_llm, form, [user("Hi.")])[-1]
        assert isinstance(last.raw, dict), "raw is a plain dict, which memories and tracers can store"
        json.dumps(last.raw)
        json.dumps(last.additional_kwargs)


def nulls_in(value: Any, path: str = "") -> list[str]:
    """Where a JSON document holds null."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in nulls_in(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for at, inner in enumerate(value) for found in nulls_in(inner, f"{path}[{at}]")]
    return [path] if value is None else []
