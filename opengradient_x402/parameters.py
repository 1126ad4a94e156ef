"""What users of other chat models write, and what they are told when it means nothing, or has another name, here.

Names and sentences only; both faces ask it when a model is made. It does not know the fields of either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

from opengradient_x402.errors import ConfigurationError

_ONE_ANSWER: Final = "A call has one answer. Ask n times (LangChain: `model.batch([prompt] * n)`)."
_WALLET: Final = "Calls are paid by a wallet. Use `private_key`, or set OG_PRIVATE_KEY."
_GATEWAY: Final = "Use `base_url`, which names a gateway that is paid over x402."
_HTTP: Final = "Use `http_client` (and the async one) with an httpx client of your own."
_RESPONSES: Final = "It belongs to OpenAI's Responses API, which gateways do not speak. Send the whole conversation."
_ROUTING: Final = "It is OpenRouter's own. Name the provider in `model`, as in 'anthropic/claude-sonnet-4-6'."
_RANKING: Final = "It is for OpenRouter's rankings. Use `default_headers` if your gateway reads such headers."

REFUSED: Final = {
    "n": _ONE_ANSWER,
    "openai_api_key": _WALLET,
    "openrouter_api_key": _WALLET,
    "openai_api_base": _GATEWAY,
    "openrouter_api_base": _GATEWAY,
    "openai_organization": "There is no account with a provider. Leave it out.",
    "organization": "There is no account with a provider. Leave it out.",
    "api_version": "There is no Azure deployment behind a gateway. Leave it out.",
    "openai_proxy": "Set HTTPS_PROXY, or use `http_client=httpx.Client(proxy=…)`.",
    "http_socket_options": "Use `http_client=httpx.Client(transport=httpx.HTTPTransport(socket_options=…))`.",
    "root_client": _HTTP,
    "root_async_client": _HTTP,
    "openai_client": _HTTP,
    "async_openai_client": _HTTP,
    "reuse_client": "Connections are always shared, and made anew when they break. Leave it out.",
    "tiktoken_model_name": "Tokens are estimated offline. Use `custom_get_token_ids` for a tokenizer of your own.",
    "include_response_headers": "What a gateway's headers say of a call is on its receipt. Leave it out.",
    "disabled_params": "Give None for a parameter in a call or in `bind`, and it is not sent.",
    "context_management": _RESPONSES,
    "include": _RESPONSES,
    "truncation": _RESPONSES,
    "use_previous_response_id": _RESPONSES,
    "use_responses_api": _RESPONSES,
    "store": "Gateways keep no answers. Keep the message, or use LangSmith.",
    "prompt_cache_options": "Mark what may be cached with `cache_control` on text blocks and tools.",
    "app_url": _RANKING,
    "app_title": _RANKING,
    "app_categories": _RANKING,
    "openrouter_provider": _ROUTING,
    "route": _ROUTING,
    "plugins": f"{_ROUTING} For web search use `web_search=True`.",
    "session_id": "It is for OpenRouter's records. Use `metadata`, `tags` or run ids of your framework.",
    "trace": "It is for OpenRouter's records. Use `metadata`, `tags` or run ids of your framework.",
}
"""Fields of `ChatOpenAI`, `ChatOpenRouter` and LlamaIndex's `OpenAI` that a model here refuses, and what to do."""


def check_names(owner: str, given: Iterable[str], *, known: Collection[str]) -> None:
    """Raises ConfigurationError for the first of `given` that is not `known`: nothing that is set goes unseen."""
    for name in given:
        if name in known:
            continue
        if (remedy := REFUSED.get(name)) is None:
            near = get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            remedy = f"{hint}Members of the request that are no fields go into `extra_body`."
        raise ConfigurationError(f"{owner} takes no {name!r}. Nothing was paid. {remedy}")


def checked_sender(given: object) -> object:
    """An httpx client or transport as the user gave it. Raises ConfigurationError for anything else."""
    if given is None or any(hasattr(given, name) for name in ("send", "handle_request", "handle_async_request")):
        return given
    raise ConfigurationError(
        f"A {type(given).__name__} cannot send requests. Nothing was paid. Give an httpx client or transport."
    )
