"""The `usage` object of a chat completion: written from token counts, completed, or estimated with `tokens`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.tokens import PromptCount, count, count_message, count_request


def usage(
    *, prompt: PromptCount, completion_tokens: int, reasoning_tokens: int = 0, audio_tokens: int = 0
) -> dict[str, Any]:
    """The `usage` object of a chat completion. `completion_tokens` includes reasoning and audio."""
    prompt_details = {"cached_tokens": prompt.cached, "audio_tokens": prompt.audio}
    if prompt.cache_creation:
        prompt_details["cache_creation_tokens"] = prompt.cache_creation
    return {
        "prompt_tokens": prompt.total,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt.total + completion_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens, "audio_tokens": audio_tokens},
    }


def complete_usage(given: object, request: Mapping[str, Any], *, said: Mapping[str, Any]) -> dict[str, Any]:
    """The usage that a server gave, with its sums filled in; an estimate when it gave none."""
    if isinstance(given, Mapping) and given.get("prompt_tokens") is not None:
        prompt_tokens, completion_tokens = int(given["prompt_tokens"]), int(given.get("completion_tokens") or 0)
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        return {**given, **counts, "total_tokens": int(given.get("total_tokens") or sum(counts.values()))}
    return usage(prompt=estimate_prompt(request), completion_tokens=count_message(said))


def estimate_prompt(request: Mapping[str, Any]) -> PromptCount:
    """The tokens of a request, for where the model has not counted them."""
    try:
        return count_request(request)
    except ModelError:
        # A real model may take message parts that the tokenizer refuses; its answer has a price all the same.
        return PromptCount(total=count(json.dumps(request["messages"])))
