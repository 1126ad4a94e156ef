"""Every parameter and property of the models that users come from, beyond what their frameworks give to all models."""

import inspect
import json
import sys

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_openrouter import ChatOpenRouter
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.openai import OpenAI

sys.stdin.readline()
RIVALS = {"ChatOpenAI": (ChatOpenAI, BaseChatModel), "ChatOpenRouter": (ChatOpenRouter, BaseChatModel)}
METHODS = ("bind_tools", "with_structured_output")


def parameters(model: type, base: type) -> list[str]:
    own = {name: field for name, field in model.model_fields.items() if name not in base.model_fields}
    aliases = [field.alias for field in own.values() if field.alias]
    properties = [
        name
        for name in dir(model)
        if not name.startswith("_")
        and not hasattr(base, name)
        and isinstance(inspect.getattr_static(model, name), property)
    ]
    return sorted({*own, *aliases, *properties})


def arguments(function: object) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [one.name for one in inspect.signature(function).parameters.values() if one.kind in kinds][1:]


found = {name: parameters(model, base) for name, (model, base) in RIVALS.items()}
found["OpenAI"] = sorted({*parameters(OpenAI, FunctionCallingLLM), *arguments(OpenAI.__init__)})
methods = {name: {one: arguments(getattr(model, one)) for one in METHODS} for name, (model, _) in RIVALS.items()}
print(json.dumps({"parameters": found, "methods": methods}))
