"""What the migration page says of each parameter of another model is what the models here do with it."""

from __future__ import annotations

import re
import warnings
from typing import Any

import httpx
import pytest

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_x402.parameters import REFUSED
from support.migration_table import rows_about

OURS = {"ChatOpenAI": ChatOpenGradient, "ChatOpenRouter": ChatOpenGradient, "OpenAI": OpenGradient}
ROWS = [(model, name, said) for model in OURS for name, said in rows_about(model).items()]
VALUES: dict[str, Any] = {
    "client": object(),
    "async_client": object(),
    "api_key": "0x" + "11" * 32,
    "http_client": httpx.HTTPTransport(),
    "http_async_client": httpx.AsyncHTTPTransport(),
    "async_http_client": httpx.AsyncHTTPTransport(),
    "callback_manager": None,
    "output_parser": None,
    "messages_to_prompt": str,
    "completion_to_prompt": str,
    "pydantic_program_mode": "function",
    "stop": ["END"],
    "stop_sequences": ["END"],
    "modalities": ["text"],
    **dict.fromkeys(("base_url", "api_base"), "http://127.0.0.1:1"),
    **dict.fromkeys(("model", "model_name", "system_prompt", "reasoning_effort", "verbosity", "service_tier"), "low"),
    **{key: {"a": 1} for key in ("additional_kwargs", "audio_config", "extra_body", "model_kwargs", "reasoning")},
    **{key: {"a": "b"} for key in ("default_headers", "default_query")},
    "logit_bias": {5: 1},
}
"""For parameters that do not take the number 1."""


@pytest.mark.parametrize(("model", "name", "said"), ROWS, ids=lambda value: value if value in OURS else None)
def test_a_row_says_what_happens(model: str, name: str, said: str):
    ours, value = OURS[model], VALUES.get(name, 1)
    fields = {"model": "openai/gpt-5", name: value}
    if name == "model_name":
        fields = {name: value}
    if said.startswith("refused: "):
        with pytest.raises(ValueError, match="Nothing was paid") as caught:
            ours(**{**fields, name: 2})
        assert said.removeprefix("refused: ") == REFUSED[name]
        assert REFUSED[name] in str(caught.value)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made = ours(**fields)
    other = re.match(r"`(\w+)`; this name is accepted", said)
    assert other or said.startswith("the same"), said
    assert bool(warned) == ("with a warning" in said)
    kept = getattr(made, other[1] if other else name if name != "api_key" else "private_key")
    assert (kept is None) == (name == "output_parser")
    if value is not None and not isinstance(value, str):
        assert kept == value


def test_every_refusal_is_on_the_page():
    assert {name for _, name, said in ROWS if said.startswith("refused: ")} >= REFUSED.keys() - {"n"}
