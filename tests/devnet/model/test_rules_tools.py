"""Which tools the rule model calls, with what, and that every agent loop over it ends."""

from __future__ import annotations

import asyncio
import json

import pytest

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.rules import RulesModel


def tool(name, description, **parameters):
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


ADD = tool("add", "Add two numbers.", a="integer", b="integer")
MULTIPLY = tool("multiply", "Multiply two numbers.", a="integer", b="integer")
WEATHER = tool("get_weather", "Get the weather at a location.", location="string")
POPULATION = tool("get_population", "How many people live in a city.", city="string")
SEARCH = tool("search_web", "Search the web.", query="string")
REPORT = tool("WeatherReport", "A weather report.", location="string", degrees="integer")
TOOLS = [ADD, MULTIPLY, WEATHER, POPULATION, SEARCH]


def user(text):
    return {"role": "user", "content": text}


def message_for(*messages, tools=TOOLS, **options):
    request = {"model": "openai/gpt-5", "messages": list(messages), "tools": tools, **options}
    return asyncio.run(RulesModel().complete(request)).message


def calls_in(message):
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", [])
    ]


def calls_for(text, **options):
    return calls_in(message_for(user(text), **options))


def run_agent(text, answers, *, tools=TOOLS, turns=8, **options):
    """Answer every call from `answers` until the model talks; the names called in each turn, and the last text."""
    messages, rounds = [user(text)], []
    for _ in range(turns):
        message = message_for(*messages, tools=tools, **options)
        if not message.get("tool_calls"):
            return rounds, message["content"]
        rounds.append(calls_in(message))
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": answers[call["function"]["name"]]}
            for call in message["tool_calls"]
        ]
    pytest.fail(f"The agent did not end: {rounds}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the weather in San Francisco, CA?", [("get_weather", {"location": "San Francisco, CA"})]),
        ("What is 1 + 2?", [("add", {"a": 1, "b": 2})]),
        ("Please multiply -4 by 2,500.", [("multiply", {"a": -4, "b": 2500})]),
        ("What's the weather in 'New Delhi'? Use the tool.", [("get_weather", {"location": "New Delhi"})]),
        (
            "What is the weather in Paris, London and Rome?",
            [("get_weather", {"location": place}) for place in ("Paris", "London", "Rome")],
        ),
        ("Add 2 and 3 and multiply 4 by 5.", [("add", {"a": 2, "b": 3}), ("multiply", {"a": 4, "b": 5})]),
        (
            "What's the weather and the population of Paris?",
            [("get_weather", {"location": "Paris"}), ("get_population", {"city": "Paris"})],
        ),
    ],
)
def test_calls_what_the_words_ask_for(text, expected):
    assert calls_for(text) == expected


@pytest.mark.parametrize("text", ["Hello!", "Tell me a joke about cats.", "Thanks, that was all."])
def test_calls_nothing_when_no_words_fit(text):
    message = message_for(user(text))
    assert "tool_calls" not in message
    assert message["content"]


def test_never_calls_when_the_choice_is_none():
    assert calls_for("What is the weather in Paris?", tool_choice="none") == []


@pytest.mark.parametrize("choice", ["required", "any"])
def test_a_required_call_is_made_even_if_no_words_fit(choice):
    assert len(calls_for("Hello!", tool_choice=choice)) == 1


def test_a_named_choice_is_obeyed_against_the_words():
    choice = {"type": "function", "function": {"name": "multiply"}}
    assert calls_for("What is the weather? 6 and 7", tool_choice=choice) == [("multiply", {"a": 6, "b": 7})]


def test_without_parallel_calls_they_come_one_after_the_other():
    answers = {"get_weather": "sunny"}
    rounds, text = run_agent("What is the weather in Paris and London?", answers, parallel_tool_calls=False)
    assert rounds == [[("get_weather", {"location": "Paris"})], [("get_weather", {"location": "London"})]]
    assert text.count("sunny") == 2


def test_a_later_step_waits_and_uses_the_result_of_the_earlier():
    answers = {"add": "5", "multiply": "20"}
    rounds, text = run_agent("Add 2 and 3, then multiply the result by 4.", answers)
    assert [[name for name, _ in calls] for calls in rounds] == [["add"], ["multiply"]]
    assert sorted(rounds[1][0][1].values()) == [4, 5]
    assert "20" in text


def test_quotes_what_the_tool_answered_and_calls_no_more():
    rounds, text = run_agent("What is the weather in Paris?", {"get_weather": "It rains frogs."})
    assert len(rounds) == 1
    assert "It rains frogs." in text


def test_a_failed_tool_is_not_called_again():
    rounds, text = run_agent("Add 2 and 3.", {"add": "Error: out of order"})
    assert len(rounds) == 1
    assert "out of order" in text


def test_a_form_is_handed_in_after_the_actions_and_from_their_results():
    messages = [user("What is the weather in Paris?")]
    first = message_for(*messages, tools=[WEATHER, REPORT], tool_choice="required")
    assert calls_in(first) == [("get_weather", {"location": "Paris"})]
    call_id = first["tool_calls"][0]["id"]
    messages += [first, {"role": "tool", "tool_call_id": call_id, "content": "21 degrees in Paris"}]
    second = message_for(*messages, tools=[WEATHER, REPORT], tool_choice="required")
    assert calls_in(second) == [("WeatherReport", {"location": "Paris", "degrees": 21})]


def test_a_form_that_holds_a_list_is_filled_in_once_with_all_of_it():
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    people = tool("People", "")
    people["function"]["parameters"] = {
        "type": "object",
        "properties": {"people": {"type": "array", "items": person}},
        "required": ["people"],
    }
    for choice in ("auto", "required"):
        ((_, arguments),) = calls_for("Extract: Ada is 36 years old and Bob is 25.", tools=[people], tool_choice=choice)
        assert arguments == {"people": [{"name": "Ada", "age": 36}, {"name": "Bob", "age": 25}]}


def test_a_new_question_starts_a_new_plan():
    messages = [user("What is the weather in Paris?")]
    first = message_for(*messages)
    messages += [first, {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "sunny"}]
    messages += [{"role": "assistant", "content": "Sunny."}, user("And in Rome: what is the weather?")]
    assert calls_in(message_for(*messages)) == [("get_weather", {"location": "Rome"})]


HANDOFF = {
    "type": "function",
    "function": {
        "name": "handoff",
        "description": (
            "Useful for handing off to another agent.\n\nCurrently available agents:\n"
            "{'WriteAgent': 'Writes a report on a topic', 'MathAgent': 'Computes sums and products'}\n"
        ),
        "parameters": {
            "type": "object",
            "properties": {"to_agent": {"type": "string"}, "reason": {"type": "string"}},
            "required": ["to_agent", "reason"],
        },
    },
}


def test_hands_off_to_the_agent_whose_description_fits():
    ((name, arguments),) = calls_for("Please write a report on cats.", tools=[SEARCH, HANDOFF])
    assert name == "handoff"
    assert arguments["to_agent"] == "WriteAgent"
    assert arguments["reason"]


def test_the_agent_that_took_over_does_not_hand_back_what_is_done():
    rounds, _ = run_agent(
        "Search the web for tea, then write a report on it.",
        {"search_web": "Tea is a drink.", "handoff": "WriteAgent is now handling the request."},
        tools=[SEARCH, HANDOFF],
    )
    assert [name for calls in rounds for name, _ in calls] == ["search_web", "handoff"]


def test_ids_differ_between_calls_and_are_the_same_for_the_same_request():
    first, second = (message_for(user("Weather in Paris and London")) for _ in range(2))
    assert first == second
    assert len({call["id"] for call in first["tool_calls"]}) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "nope"),
        ({"tool_choice": "sometimes"}, "sometimes"),
        ({"tools": [ADD, ADD]}, "twice"),
        ({"tools": [tool("has blanks in it", "")]}, "tool name"),
    ],
)
def test_refuses_tools_that_a_provider_would_refuse(options, complaint):
    with pytest.raises(ModelError, match=complaint) as caught:
        calls_for("Hello", **options)
    assert caught.value.status == 400


def test_refuses_results_that_answer_no_call_and_calls_without_results():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    with pytest.raises(ModelError, match="no open call"):
        message_for(user("x"), {"role": "tool", "tool_call_id": "1", "content": "3"})
    with pytest.raises(ModelError, match="must be followed"):
        message_for(user("x"), {"role": "assistant", "content": None, "tool_calls": [call]}, user("y"))
