"""Prompts as LlamaIndex really prints them, read back by LlamaIndex's own parsers."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine.condense_plus_context import (
    DEFAULT_CONDENSE_PROMPT_TEMPLATE,
    DEFAULT_CONTEXT_PROMPT_TEMPLATE,
)
from llama_index.core.chat_engine.condense_question import DEFAULT_PROMPT as CONDENSE_QUESTION_PROMPT
from llama_index.core.chat_engine.context import DEFAULT_CONTEXT_TEMPLATE, DEFAULT_REFINE_TEMPLATE
from llama_index.core.output_parsers.selection import SelectionOutputParser
from llama_index.core.prompts.chat_prompts import (
    CHAT_CONTENT_QA_PROMPT,
    CHAT_REFINE_PROMPT,
    CHAT_TEXT_QA_PROMPT,
    CHAT_TREE_SUMMARIZE_PROMPT,
)
from llama_index.core.prompts.default_prompts import (
    DEFAULT_CHOICE_SELECT_PROMPT,
    DEFAULT_QUERY_KEYWORD_EXTRACT_TEMPLATE,
    DEFAULT_QUERY_PROMPT,
    DEFAULT_REFINE_PROMPT,
    DEFAULT_SUMMARY_PROMPT,
    DEFAULT_TEXT_QA_PROMPT,
)
from llama_index.core.question_gen.output_parser import SubQuestionOutputParser
from llama_index.core.question_gen.prompts import DEFAULT_SUB_QUESTION_PROMPT_TMPL, build_tools_text
from llama_index.core.selectors.prompts import DEFAULT_MULTI_SELECT_PROMPT_TMPL, DEFAULT_SINGLE_SELECT_PROMPT_TMPL
from llama_index.core.tools import FunctionTool, ToolMetadata

from opengradient_devnet.model.rules import RulesModel

CONTEXT = (
    "file_name: facts.txt\n\nThe Eiffel Tower stands in Paris. It was finished in 1889.\n\n"
    "Mount Fuji is a volcano in Japan. Mount Fuji is 3776 metres high.\n\nBananas are yellow."
)
FUJI = "Mount Fuji is 3776 metres high."
QUESTION = "How high is Mount Fuji?"
NOT_THERE = "The context does not say."


def say(*messages, **options):
    """The model's text for plain strings (user messages) or LlamaIndex chat messages."""
    chat = [
        {"role": "user", "content": item}
        if isinstance(item, str)
        else {"role": item.role.value, "content": item.content}
        for item in messages
    ]
    return asyncio.run(RulesModel().complete({"model": "m", "messages": chat, **options})).message["content"]


@pytest.mark.parametrize(
    "messages",
    [
        CHAT_TEXT_QA_PROMPT.format_messages(context_str=CONTEXT, query_str=QUESTION),
        CHAT_TREE_SUMMARIZE_PROMPT.format_messages(context_str=CONTEXT, query_str=QUESTION),
        CHAT_CONTENT_QA_PROMPT.format_messages(context_messages=[ChatMessage(CONTEXT)], query_str=QUESTION),
        [DEFAULT_TEXT_QA_PROMPT.format(context_str=CONTEXT, query_str=QUESTION)],
        [ChatMessage(DEFAULT_CONTEXT_TEMPLATE.format(context_str=CONTEXT), role="system"), QUESTION],
        [ChatMessage(DEFAULT_CONTEXT_PROMPT_TEMPLATE.format(context_str=CONTEXT), role="system"), QUESTION],
        [f"Answer from this context:\n{CONTEXT}\n\nQuestion: {QUESTION}\nHelpful Answer:"],
        [f"<context>\n{CONTEXT}\n</context>\n\nQuestion: {QUESTION}"],
    ],
    ids=["qa", "tree", "content-qa", "completion-qa", "context-chat", "condense-chat", "rag-labels", "rag-tags"],
)
def test_questions_are_answered_from_the_context_and_from_nothing_else(messages):
    answer = say(*messages)
    assert FUJI in answer
    assert "Eiffel" not in answer
    assert "Bananas" not in answer


def test_what_the_context_does_not_say_is_not_made_up():
    assert say(DEFAULT_TEXT_QA_PROMPT.format(context_str=CONTEXT, query_str="Who painted Guernica?")) == NOT_THERE


def test_a_summary_takes_something_from_every_paragraph():
    for prompt in (
        DEFAULT_TEXT_QA_PROMPT.format(context_str=CONTEXT, query_str="Give me an overview, please."),
        DEFAULT_SUMMARY_PROMPT.format(context_str=CONTEXT),
    ):
        answer = say(prompt)
        assert all(word in answer for word in ("Eiffel", "Fuji", "Bananas"))
        assert "facts.txt" not in answer


@pytest.mark.parametrize("prompt", [CHAT_REFINE_PROMPT, DEFAULT_REFINE_PROMPT], ids=["chat", "completion"])
@pytest.mark.parametrize(
    ("existing", "context", "expected"),
    [
        ("It is in Japan.", CONTEXT, f"It is in Japan. Mount Fuji is a volcano in Japan. {FUJI}"),
        (FUJI, "Bananas are yellow.", FUJI),
        (FUJI, FUJI, FUJI),
        (NOT_THERE, FUJI, FUJI),
    ],
)
def test_refining_adds_what_is_new_and_keeps_what_was_said(prompt, existing, context, expected):
    messages = prompt.format_messages(query_str=QUESTION, existing_answer=existing, context_msg=context)
    assert say(*messages) == expected


def test_a_context_chat_refines_its_answer_too():
    system = DEFAULT_REFINE_TEMPLATE.format(context_msg=FUJI, existing_answer="It is in Japan.")
    assert say(ChatMessage(system, role="system"), QUESTION) == f"It is in Japan. {FUJI}"


@pytest.mark.parametrize(
    "prompt",
    [
        DEFAULT_CONDENSE_PROMPT_TEMPLATE.format(chat_history="user: Hi\nassistant: Hello", question=QUESTION),
        CONDENSE_QUESTION_PROMPT.format(chat_history="Human: Hi", question=QUESTION),
    ],
)
def test_condensing_keeps_the_question(prompt):
    assert say(prompt) == QUESTION


CHOICES = "(1) Facts about the Eiffel Tower\n\n(2) Facts about Mount Fuji\n\n(3) Recipes"


def selected(template, question, **options):
    prompt = template.format(num_choices=3, context_list=CHOICES, query_str=question, **options)
    prompt = SelectionOutputParser().format(prompt).replace("{{", "{").replace("}}", "}")
    return [item.choice for item in SelectionOutputParser().parse(say(prompt)).parsed_output]


def test_routers_get_the_number_of_the_best_choice():
    assert selected(DEFAULT_SINGLE_SELECT_PROMPT_TMPL, QUESTION) == [2]
    assert selected(DEFAULT_SINGLE_SELECT_PROMPT_TMPL, "When was the Eiffel Tower built?") == [1]


def test_a_multi_selector_gets_every_choice_that_adds_something():
    both = "Which is higher, the Eiffel Tower or Mount Fuji?"
    assert sorted(selected(DEFAULT_MULTI_SELECT_PROMPT_TMPL, both, max_outputs=2)) == [1, 2]
    assert selected(DEFAULT_MULTI_SELECT_PROMPT_TMPL, QUESTION, max_outputs=2) == [2]


def test_a_selection_asked_for_as_a_tool_call_has_the_same_number():
    schema = {
        "type": "object",
        "properties": {"index": {"type": "integer"}, "reason": {"type": "string"}},
        "required": ["index", "reason"],
    }
    prompt = DEFAULT_SINGLE_SELECT_PROMPT_TMPL.format(num_choices=3, context_list=CHOICES, query_str=QUESTION)
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": {"name": "SingleSelection", "parameters": schema}}],
        "tool_choice": "required",
    }
    (call,) = asyncio.run(RulesModel().complete(request)).message["tool_calls"]
    assert json.loads(call["function"]["arguments"])["index"] == 2


def test_trees_and_keyword_tables_get_their_formats():
    prompt = DEFAULT_QUERY_PROMPT.format(num_chunks=3, context_list=CHOICES, query_str=QUESTION)
    assert say(prompt).startswith("ANSWER: 2\n")
    keywords = say(DEFAULT_QUERY_KEYWORD_EXTRACT_TEMPLATE.format(max_keywords=5, question=QUESTION))
    assert keywords == "KEYWORDS: high, mount, fuji"


def test_documents_are_ranked_by_relevance():
    documents = "Document 1:\nThe Eiffel Tower stands in Paris.\n\nDocument 2:\nMount Fuji is high.\n\n"
    prompt = DEFAULT_CHOICE_SELECT_PROMPT.format(context_str=documents, query_str=QUESTION)
    assert say(prompt) == "Doc: 2, Relevance: 10"


def test_sub_questions_go_to_the_tools_that_they_concern():
    tools = [
        ToolMetadata(name="eiffel", description="Facts about the Eiffel Tower"),
        ToolMetadata(name="fuji", description="Facts about Mount Fuji"),
        ToolMetadata(name="recipes", description="Facts about cooking"),
    ]
    asked = "Compare the height of the Eiffel Tower and Mount Fuji"
    prompt = DEFAULT_SUB_QUESTION_PROMPT_TMPL.replace("{tools_str}", build_tools_text(tools))
    prompt = prompt.replace("{query_str}", asked)
    questions = SubQuestionOutputParser().parse(say(prompt)).parsed_output
    assert [question.tool_name for question in questions] == ["eiffel", "fuji"]
    assert questions[0].sub_question == "Compare the height of the Eiffel Tower"
    assert "Eiffel" not in questions[1].sub_question


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@pytest.mark.parametrize("role", ["user", "tool-like"])
def test_a_react_agent_takes_its_steps_and_ends(role):
    tools = {function.__name__: FunctionTool.from_defaults(function) for function in (add, multiply)}
    question = ChatMessage("Add 2 and 3, then multiply the result by 4.")
    formatter, parser = ReActChatFormatter.from_defaults(), ReActOutputParser()
    chat = formatter.format(list(tools.values()), [question])
    used = []
    for _ in range(5):
        text = say(*chat)
        step = parser.parse(text)
        if step.is_done:
            break
        used.append(step.action)
        result = tools[step.action](**step.action_input)
        # LlamaIndex prints its own steps back as Python dictionaries; models see both spellings.
        shown = step.get_content() if role == "user" else text
        chat += [ChatMessage(shown, role="assistant"), ChatMessage(f"Observation: {result}", role="user")]
    assert used == ["add", "multiply"]
    assert step.response == "5; 20"


def test_a_react_agent_answers_at_once_when_no_tool_is_needed():
    chat = ReActChatFormatter.from_defaults().format([FunctionTool.from_defaults(add)], [ChatMessage("Hello there")])
    step = ReActOutputParser().parse(say(*chat))
    assert step.is_done
    assert "Hello there" in step.response


def test_a_react_prompt_in_one_text_is_continued_with_bare_inputs():
    prompt = (
        "Answer the following questions as best you can. You have access to the following tools:\n\n"
        "search(query: str) -> str - Search the web.\n\nUse the following format:\n\nQuestion: the input question\n"
        "Thought: what to do\nAction: the action to take, should be one of [search]\nAction Input: the input\n"
        "Observation: the result\n... (this can repeat)\nThought: I now know the final answer\n"
        "Final Answer: the final answer\n\nBegin!\n\nQuestion: Search for the height of Fuji\nThought:"
    )
    step = say(prompt)
    assert step.endswith("Action: search\nAction Input: Search for the height of Fuji")
    done = say(f"{prompt}{step.removeprefix('Thought:')}\nObservation: 3776 m\nThought:")
    assert done.endswith("Final Answer: 3776 m")
