"""Messages keep everything that matters on their way to the wire, and what has no place there is refused."""

import warnings

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_opengradient.content import to_part
from langchain_opengradient.errors import UnsupportedContent
from langchain_opengradient.messages import NotResent, to_wire

PNG = "iVBORw0KGgo="
PDF = "JVBERi0xLjQK"
WAV = "UklGRg=="


def test_plain_conversation_keeps_roles_names_and_order():
    assert to_wire(
        [
            SystemMessage("be brief"),
            HumanMessage("hi", name="ann"),
            AIMessage("hello"),
            ChatMessage(role="developer", content="no jokes"),
            HumanMessage("bye"),
        ]
    ) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": "hello"},
        {"role": "system", "content": "no jokes"},
        {"role": "user", "content": "bye"},
    ]


def test_malformed_tool_calls_go_back_with_their_ids():
    message = AIMessage(
        "",
        tool_calls=[{"name": "good", "args": {"a": "ü"}, "id": "1"}],
        invalid_tool_calls=[{"name": "bad", "args": '{"a": ', "id": "2", "error": None}],
    )
    [wire] = to_wire([message])
    assert [(call["id"], call["function"]) for call in wire["tool_calls"]] == [
        ("1", {"name": "good", "arguments": '{"a": "ü"}'}),
        ("2", {"name": "bad", "arguments": '{"a": '}),
    ]


def test_reasoning_and_call_blocks_stay_out_of_the_assistants_text():
    message = AIMessage(
        [
            {"type": "thinking", "thinking": "private", "signature": "s"},
            {"type": "reasoning", "reasoning": "private"},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "it"}},
        ]
    )
    [wire] = to_wire([message])
    assert wire["content"] == "Let me look."
    assert wire["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "it"}'}


def test_calls_in_content_and_in_tool_calls_are_one_call():
    message = AIMessage(
        [{"type": "tool_use", "id": "1", "name": "look", "input": {}}],
        tool_calls=[{"name": "look", "args": {}, "id": "1"}],
    )
    assert len(to_wire([message])[0]["tool_calls"]) == 1


def test_anthropic_tool_results_come_before_the_users_next_words():
    wire = to_wire(
        [
            HumanMessage(
                [
                    {"type": "text", "text": "and now?"},
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "42"}]},
                ]
            )
        ]
    )
    assert wire == [
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "user", "content": "and now?"},
    ]


def test_a_tool_message_may_hold_an_image():
    [wire] = to_wire(
        [ToolMessage([{"type": "image", "base64": PNG, "mime_type": "image/png"}], tool_call_id="1", name="t")]
    )
    assert wire["content"] == [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
    assert (wire["tool_call_id"], wire["name"]) == ("1", "t")


def test_an_image_in_an_earlier_answer_stays_out_with_a_warning():
    message = AIMessage([{"type": "text", "text": "a cat"}, {"type": "image", "url": "https://x/y.png"}])
    with pytest.warns(NotResent, match="HumanMessage"):
        assert to_wire([message])[0]["content"] == "a cat"


def test_the_messages_themselves_are_left_alone():
    message = HumanMessage([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])
    before = message.model_dump()
    assert to_wire([message])[0]["content"] == message.content, "a mark for the provider's cache is sent"
    assert message.model_dump() == before


def test_a_message_that_is_none_is_refused():
    with pytest.raises(UnsupportedContent, match="Nothing was sent or paid"):
        to_wire([RemoveMessage(id="1")])


IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
FILE = {"type": "file", "file": {"filename": "document.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "image", "base64": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, IMAGE),
        ({"image": {"format": "png", "source": {"bytes": b"\x89PNG\r\n\x1a\n"}}}, IMAGE),
        ({"type": "media", "mime_type": "image/png", "data": PNG}, IMAGE),
        ({"type": "file", "base64": PNG, "mime_type": "image/png"}, IMAGE),
        ({"type": "non_standard", "value": IMAGE}, IMAGE),
        (
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        ),
        ({"type": "image_url", "image_url": "https://x/y"}, {"type": "image_url", "image_url": {"url": "https://x/y"}}),
        ({"type": "image", "url": "https://x/y"}, {"type": "image_url", "image_url": {"url": "https://x/y"}}),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
            {"type": "image_url", "image_url": {"url": "https://x/y"}},
        ),
        ({"type": "file", "base64": PDF, "mime_type": "application/pdf"}, FILE),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}, FILE),
        (
            {"type": "file", "base64": PDF, "mime_type": "application/pdf", "extras": {"filename": "a.pdf"}},
            {"type": "file", "file": {**FILE["file"], "filename": "a.pdf"}},
        ),
        ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}}, FILE),
        ({"type": "document", "source": {"type": "text", "data": "plain"}}, {"type": "text", "text": "plain"}),
        ({"type": "text-plain", "text": "plain"}, {"type": "text", "text": "plain"}),
        ({"type": "audio", "base64": WAV, "mime_type": "audio/x-wav"}, AUDIO),
        ({"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}, AUDIO),
        ({"type": "media", "mime_type": "audio/wav", "data": WAV}, AUDIO),
        (
            {"type": "audio", "base64": WAV, "mime_type": "audio/mpeg"},
            {**AUDIO, "input_audio": {"data": WAV, "format": "mp3"}},
        ),
        ({"type": "json", "json": {"ä": 1}}, {"type": "text", "text": '{"ä": 1}'}),
        ({"type": "guard_content", "guard_content": {"text": {"text": "x"}}}, {"type": "text", "text": "x"}),
    ],
)
def test_content_of_every_dialect_becomes_the_gateways_own(block, part):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_part(block) == part


@pytest.mark.parametrize(
    "block",
    [
        {"type": "video", "base64": PNG, "mime_type": "video/mp4"},
        {"type": "image", "file_id": "file-1"},
        {"type": "file", "url": "https://x/y.pdf"},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "audio", "url": "https://x/y.wav"},
        {"type": "audio", "base64": WAV, "mime_type": "audio/ogg"},
        {"type": "media", "mime_type": "video/mp4", "data": PNG},
        {"type": "image_url", "image_url": {}},
        {"type": "hologram"},
        {"nothing": "known"},
    ],
)
def test_what_the_wire_has_no_place_for_is_refused_and_never_dropped(block):
    with pytest.raises(UnsupportedContent, match="Nothing was sent or paid") as caught:
        to_wire([HumanMessage([{"type": "text", "text": "look:"}, block])])
    assert PNG not in str(caught.value)
    assert caught.value.money == "not_paid"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "document": {"source": None}},
        {"type": "audio", "image": {"source": None}},
        {"type": "file", "base64": "QQ==", "mime_type": 5},
        {"type": "file", "base64": "QQ==", "extras": "x"},
        {"type": "guard_content", "guard_content": "x"},
        {"type": "json", "text": "x"},
        {"type": "search_result", "content": 5},
    ],
    ids=lambda block: f"{block['type']} {sorted(block)}",
)
def test_a_block_that_is_not_written_as_its_kind_is_names_itself(block):
    with pytest.raises(UnsupportedContent, match=f"type '{block['type']}'.*Nothing was sent or paid"):
        to_part(block)


@pytest.mark.parametrize(("result", "sent"), [({"n": 1}, '{"n": 1}'), (5, "5"), ([None], "[null]"), ("x", "x")])
def test_a_result_in_anthropic_s_form_may_be_any_json(result, sent):
    block = {"type": "tool_result", "tool_use_id": "c1", "content": result}
    assert to_wire([HumanMessage([block])])[0]["content"] == sent


def test_a_call_in_the_form_of_the_responses_api_may_have_an_object_for_arguments():
    block = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": {"a": 1}}
    assert to_wire([AIMessage([block])])[0]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
