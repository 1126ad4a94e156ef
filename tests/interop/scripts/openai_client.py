"""OpenAI's own client against the server, as its users call it.

Task: {base_url, api_key, model, image, does: [name]}. Answer: {name: what came}.
"""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is x402?"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


def receipt_of(answer):
    return answer.opengradient["call_id"]


def models(client, task):
    return [model.id for model in client.models.list()]


def chat(client, task):
    raw = client.chat.completions.with_raw_response.create(model=task["model"], messages=QUESTION)
    answer = raw.parse()
    return {
        "text": answer.choices[0].message.content,
        "tokens": answer.usage.total_tokens,
        "receipt": receipt_of(answer),
        "header": raw.headers["x-opengradient-receipt"],
    }


def stream(client, task):
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(model=task["model"], messages=QUESTION, stream=True, stream_options=options)
    )
    texts = [choice.delta.content or "" for event in events for choice in event.choices]
    return {"text": "".join(texts), "tokens": events[-1].usage.total_tokens, "receipt": receipt_of(events[-1])}


def helped_stream(client, task):
    """The helper that puts the events of a stream together."""
    with client.chat.completions.stream(model=task["model"], messages=QUESTION) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0].message.content


def tools(client, task):
    messages = [{"role": "user", "content": "Use add on 2 and 3."}]
    answer = client.chat.completions.create(model=task["model"], messages=messages, tools=[ADD], tool_choice="required")
    message = answer.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "five"}
    last = client.chat.completions.create(model=task["model"], messages=[*messages, message, result], tools=[ADD])
    return {"name": call.function.name, "text": last.choices[0].message.content}


def structured(client, task):
    answer = client.chat.completions.parse(
        model=task["model"], messages=[{"role": "user", "content": "Who is it?"}], response_format=Person
    )
    return sorted(answer.choices[0].message.parsed.model_dump())


def image(client, task):
    parts = [{"type": "text", "text": "Describe it."}, {"type": "image_url", "image_url": {"url": task["image"]}}]
    answer = client.chat.completions.create(model=task["model"], messages=[{"role": "user", "content": parts}])
    return answer.choices[0].message.content


def cancelled(client, task):
    events = client.chat.completions.create(model=task["model"], messages=QUESTION, stream=True)
    next(iter(events))
    events.close()
    return True


def asynchronous(client, task):
    async def ask():
        async with openai.AsyncOpenAI(base_url=task["base_url"], api_key=task["api_key"]) as other:
            answer = await other.chat.completions.create(model=task["model"], messages=QUESTION)
            return answer.choices[0].message.content

    return asyncio.run(ask())


def failure(client, task):
    """What is raised, with the client's own retries at work."""
    try:
        client.chat.completions.create(model=task["model"], messages=QUESTION)
    except openai.APIStatusError as exc:
        return {"error": type(exc).__name__, "status": exc.status_code, "code": exc.code}
    return None


def timed_out(client, task):
    """A time limit that is too short, and the client's own retry."""
    answer = client.with_options(timeout=0.7).chat.completions.create(model=task["model"], messages=QUESTION)
    return receipt_of(answer)


def wrong_key(client, task):
    return failure(client.with_options(api_key="sk-og-wrong"), task)


def responses(client, task):
    try:
        client.responses.create(model=task["model"], input="Hello")
    except openai.NotFoundError as exc:
        return exc.body["message"]


def main():
    task = json.loads(sys.stdin.readline())
    with openai.OpenAI(base_url=task["base_url"], api_key=task["api_key"], timeout=60) as client:
        print(json.dumps({name: globals()[name](client, task) for name in task["does"]}))


main()
