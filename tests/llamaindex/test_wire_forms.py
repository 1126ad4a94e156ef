"""Messages and tools on their way to the wire, and tool calls on their way back: the finer points."""

from __future__ import annotations

import base64
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from llama_index_opengradient.messages import wire_messages
from llama_index_opengradient.tools import (
    parse_arguments,
    selections,
    tool_calls_of,
)
from llamaindex.suite.messages import PDF, PNG, WAV


def sent(*blocks, role="user", **extra):
    """The one wire message for these blocks."""
    return wire_messages([ChatMessage(role=role, blocks=list(blocks), additional_kwargs=extra)])[0]


def test_plain_text_goes_out_as_one_string():
    assert sent(TextBlock(text="one"), TextBlock(text="two")) == {"role": "user", "content": "one\ntwo"}


def test_a_conversation_without_messages_is_refused_before_it_is_paid():
    with pytest.raises(ValueError, match="Nothing was paid"):
        wire_messages([])


def test_an_empty_message_has_empty_content():
    assert sent() == {"role": "user", "content": ""}


@pytest.mark.parametrize(
    ("role", "wire"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
    ],
)
def test_roles(role, wire):
    assert sent(TextBlock(text="x"), role=role)["role"] == wire


def test_an_image_keeps_its_detail():
    part = sent(ImageBlock(image=PNG, detail="low"))["content"][0]
    encoded = base64.b64encode(PNG).decode()
    assert part == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}", "detail": "low"}}


def test_media_come_from_files_too(tmp_path: Path):
    image, audio, document = tmp_path / "a.png", tmp_path / "a.wav", tmp_path / "a.pdf"
    image.write_bytes(PNG)
    audio.write_bytes(WAV)
    document.write_bytes(PDF)
    parts = sent(ImageBlock(path=image), AudioBlock(path=audio), DocumentBlock(path=document, title="a"))["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1]["input_audio"] == {"data": base64.b64encode(WAV).decode(), "format": "wav"}
    assert parts[2]["file"]["filename"] == "a"
    assert parts[2]["file"]["file_data"].startswith("data:application/pdf;base64,")


def test_media_come_from_data_urls_too():
    audio = f"data:audio/mpeg;base64,{base64.b64encode(WAV).decode()}"
    document = f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}"
    parts = sent(AudioBlock(url=audio), DocumentBlock(url=document))["content"]
    assert parts[0]["input_audio"]["format"] == "mp3"
    assert base64.b64decode(parts[1]["file"]["file_data"].partition(",")[2]) == PDF


def test_a_text_document_goes_out_as_text():
    block = DocumentBlock(data=b"# Heading", document_mimetype="text/markdown", title="notes.md")
    assert sent(block)["content"] == "notes.md\n\n# Heading"


def test_citable_and_cited_content_keep_their_source():
    citable = CitableBlock(title="Law", source="law.txt", content=[TextBlock(text="words"), ImageBlock(image=PNG)])
    parts = sent(citable)["content"]
    assert [part["type"] for part in parts] == ["text", "text", "image_url"]
    assert parts[0]["text"] == "[Law](law.txt)"
    citation = CitationBlock(cited_content="words", source="law.txt", title="Law", additional_location_info={})
    assert sent(citation, role="assistant")["content"] == "words\n[Law](law.txt)"


def test_a_cache_point_marks_what_is_before_it():
    point = CachePoint(cache_control=CacheControl(type="ephemeral", ttl="1h"))
    content = sent(TextBlock(text="long"), point, TextBlock(text="short"), role="system")["content"]
    assert content == [
        {"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "short"},
    ]


def test_reasoning_goes_back_as_reasoning():
    message = sent(ThinkingBlock(content="hm"), TextBlock(text="42"), role="assistant")
    assert message == {"role": "assistant", "content": "42", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("block", "role", "reason"),
    [
        (VideoBlock(video=b"frames", video_mimetype="video/mp4"), "user", "no form"),
        (ImageBlock(image=PNG), "system", "text only"),
        (AudioBlock(audio=b"OggS", format="ogg"), "user", "not wav or mp3"),
        (AudioBlock(url="https://example.com/a.wav"), "user", "not by URL"),
        (DocumentBlock(url="https://example.com/a.pdf"), "user", "not by URL"),
        (DocumentBlock(data=b"PK\x03\x04", document_mimetype="application/zip"), "user", "not understood"),
        (DocumentBlock(data=b"\xff\xfe\x00", document_mimetype=None), "user", "not UTF-8"),
        (ImageBlock(), "user", "empty"),
        (ImageBlock(image=b"not an image"), "user", "image type is unknown"),
        (ThinkingBlock(content="hm"), "user", "assistant message"),
        (ToolCallBlock(tool_name="add"), "user", "assistant message"),
        (CachePoint(cache_control=CacheControl(type="ephemeral")), "user", "there is none"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(block, role, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        sent(block, role=role)
    assert "Nothing was paid" in str(refused.value)


def test_an_image_of_the_assistant_follows_in_a_user_message():
    image = ChatMessage(role="assistant", blocks=[TextBlock(text="Here:"), ImageBlock(image=PNG)])
    first, second, third = wire_messages([image, ChatMessage(role="user", content="Nice.")])
    assert first == {"role": "assistant", "content": "Here:"}
    assert [part["type"] for part in second["content"]] == ["text", "image_url"]
    assert third["content"] == "Nice."


def test_calls_without_ids_are_matched_in_order():
    calls = [ToolCallBlock(tool_call_id=None, tool_name=name) for name in ("one", "two")]
    results = [ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": ""}) for text in ("1", "2")]
    asked, first, second = wire_messages([ChatMessage(role="assistant", blocks=calls), *results])
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == 2
    assert [first["tool_call_id"], second["tool_call_id"]] == ids


def test_a_tool_result_that_answers_nothing_is_refused():
    with pytest.raises(ValueError, match="which call it answers"):
        wire_messages([ChatMessage(role="tool", content="3")])


def test_calls_of_older_messages_are_read_from_their_notes():
    plain = {"id": "a", "function": {"name": "add", "arguments": '{"a": 1}'}}
    sdk_object = SimpleNamespace(model_dump=lambda: {"id": None, "function": {"name": "now", "arguments": None}})
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [plain, sdk_object]})
    assert [(call["id"], call["function"]["name"]) for call in tool_calls_of(message)] == [("a", "add"), ("", "now")]
    assert [call["function"]["arguments"] for call in wire_messages([message])[0]["tool_calls"]] == ['{"a": 1}', "{}"]


def test_blocks_win_over_notes():
    note = {"id": "old", "function": {"name": "old", "arguments": "{}"}}
    block = ToolCallBlock(tool_call_id="new", tool_name="new")
    message = ChatMessage(role="assistant", blocks=[block], additional_kwargs={"tool_calls": [note]})
    assert [call["id"] for call in tool_calls_of(message)] == ["new"]


@pytest.mark.parametrize(
    ("arguments", "kwargs"),
    [
        (None, {}),
        ("", {}),
        ("null", {}),
        ("{}", {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": "line\nfeed"}', {"a": "line\nfeed"}),
        ('{"a": 1', None),
        ("[1]", None),
    ],
)
def test_arguments(arguments, kwargs):
    assert parse_arguments(arguments) == kwargs


def test_a_response_of_another_origin_is_taken_as_complete():
    call = ToolCallBlock(tool_call_id="a", tool_name="add", tool_kwargs='{"a": 1}')
    response = ChatResponse(message=ChatMessage(role="assistant", blocks=[call]))
    assert [selection.tool_kwargs for selection in selections(response)] == [{"a": 1}]


def test_a_malformed_call_selects_a_tool_that_nobody_has_and_says_why():
    call = ToolCallBlock(tool_call_id="a", tool_name="delete", tool_kwargs='{"path": "/tmp", "recur')
    selection = selections(ChatResponse(message=ChatMessage(role="assistant", blocks=[call])))[0]
    assert selection.tool_id == "a"
    assert selection.tool_name.startswith("delete (which was not run")
    assert '{"path": "/tmp", "recur' in selection.tool_name


def test_a_malformed_call_goes_back_as_it_came():
    call = ToolCallBlock(tool_call_id="a", tool_name="delete", tool_kwargs='{"path": "/tm')
    result = ChatMessage(role="tool", content="Not run.", additional_kwargs={"tool_call_id": "a"})
    asked, _ = wire_messages([ChatMessage(role="assistant", blocks=[call]), result])
    assert asked["tool_calls"][0]["function"] == {"name": "delete", "arguments": '{"path": "/tm'}


def test_arguments_of_an_earlier_call_may_be_dates():
    block = ToolCallBlock(tool_call_id="c1", tool_name="book", tool_kwargs={"day": date(2024, 1, 2)})
    (message,) = wire_messages([ChatMessage(role="assistant", blocks=[block])])
    assert message["tool_calls"][0]["function"]["arguments"] == '{"day": "2024-01-02"}'
