"""Providers' words for what went wrong, and the kind of error that callers get."""

import pytest

from opengradient_x402.gateway.failures import kind_of

OVERFLOWS = [
    "prompt is too long: 210000 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length",
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "This model's maximum prompt length is 131072 but the request contains 150000 tokens.",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 150000 tokens.",
    "Please reduce the length of the messages or completion.",
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "Input is too long for requested model.",
    "the request exceeds the available context size. try increasing the context size",
    "The prompt (total length 9000) is longer than the maximum model length of 8192.",
    "too many tokens: total tokens in the request cannot exceed 4081",
    "Prompt exceeds max length",
    "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000 `inputs` tokens and 20 `max_new_tokens`",
    "Unable to submit request because the input token count is 32769 but model only supports up to 32768",
    "Total tokens of image and text exceed max message tokens",
    "Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576",
    "Range of input length should be [1, 30720]",
]


@pytest.mark.parametrize("words", OVERFLOWS)
@pytest.mark.parametrize("status", [400, 413, 500, None])
def test_a_prompt_that_is_too_long_is_recognised_in_every_providers_words(words: str, status: int | None):
    assert kind_of(status, words, {"error": words}) == "context_length"


def test_a_code_says_it_too():
    body = {"error": {"message": "Bad request.", "code": "context_length_exceeded"}}
    assert kind_of(400, "Bad request", body) == "context_length"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Request too large for gpt-5 on tokens per min (TPM): Limit 30000, Requested 40000.", "rate_limit"),
        ("Too many requests", "rate_limit"),
        ("The response was filtered due to the content_filter policy", "content_filter"),
        ("Resource has been exhausted (e.g. check quota).", "rate_limit"),
        ("You exceeded your current quota, please check your plan and billing details.", "rate_limit"),
        ("The response was blocked due to SAFETY", "content_filter"),
        ("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_CSAM", "content_filter"),
        ("Model gpt-9 is not supported", "model_not_found"),
        ("The model `gpt-9` does not exist or you do not have access to it.", "model_not_found"),
        ("models/gemini-9 is not found for API version v1beta", "model_not_found"),
        ("image exceeds 5 MB maximum", "invalid_request"),
        ("max_tokens is too large: 100000. This model supports at most 16384 completion tokens", "invalid_request"),
        ("messages: at least one message is required", "invalid_request"),
    ],
)
def test_other_words_are_not_taken_for_it(words: str, kind: str):
    assert kind_of(400, words, {"error": words}) == kind
