"""LiteLLM against the server, with the retries that it does unless it is told otherwise.

Task: {base_url, api_key, model, image, does: [name]}. Answer: {name: what came}.
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")
import litellm  # noqa: E402

litellm.suppress_debug_info = True
QUESTION = [{"role": "user", "content": "What is x402?"}]
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def ask(task, messages=QUESTION, **options):
    return litellm.completion(
        model=f"openai/{task['model']}",
        api_base=task["base_url"],
        api_key=task["api_key"],
        messages=messages,
        max_retries=2,
        **options,
    )


def chat(task):
    answer = ask(task)
    headers = answer._hidden_params["additional_headers"]
    return {
        "text": answer.choices[0].message.content,
        "tokens": answer.usage.total_tokens,
        "header": next(value for name, value in headers.items() if name.endswith("x-opengradient-receipt")),
    }


def stream(task):
    return "".join(event.choices[0].delta.content or "" for event in ask(task, stream=True) if event.choices)


def tools(task):
    messages = [{"role": "user", "content": "Use add on 2."}]
    answer = ask(task, messages, tools=[ADD], tool_choice="required")
    return answer.choices[0].message.tool_calls[0].function.name


def structured(task):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    return json.loads(ask(task, response_format=form).choices[0].message.content)


def image(task):
    parts = [{"type": "text", "text": "Describe it."}, {"type": "image_url", "image_url": {"url": task["image"]}}]
    return ask(task, [{"role": "user", "content": parts}]).choices[0].message.content


def failure(task):
    try:
        ask(task)
    except Exception as exc:
        return getattr(exc, "status_code", str(exc))
    return None


def main():
    task = json.loads(sys.stdin.readline())
    print(json.dumps({name: globals()[name](task) for name in task["does"]}))


main()
