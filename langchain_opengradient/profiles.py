"""What a model can do, in the words of LangChain's `ModelProfile`.

Derived from the model catalog of `opengradient_x402`, so prices, limits and capabilities have one home.
It does not know anything that the catalog does not say: absent keys mean "not known".
"""

from __future__ import annotations

from typing import Any

from opengradient_x402.models import find_model


def profile_of(model: object) -> dict[str, Any] | None:
    """A fresh profile dict for `model` (any spelling that `find_model` takes); None for an unknown model."""
    info = find_model(model)
    if info is None:
        return None
    return {
        "max_input_tokens": info.context_tokens,
        "max_output_tokens": info.max_output_tokens,
        "text_inputs": True,
        "image_inputs": info.supports_images,
        "image_url_inputs": info.supports_images,
        "image_tool_message": info.supports_images,
        "pdf_inputs": info.supports_pdf,
        "pdf_tool_message": info.supports_pdf,
        "audio_inputs": info.supports_audio,
        "text_outputs": True,
        "image_outputs": info.supports_image_output,
        "reasoning_output": info.supports_reasoning,
        "tool_calling": info.supports_tools,
        "tool_choice": info.supports_tools,
        "tool_call_streaming": info.supports_tools,
        "structured_output": info.supports_json_schema,
    }
