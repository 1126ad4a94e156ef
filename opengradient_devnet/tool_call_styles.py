"""The styles in which gateways stream tool calls. A fault asks for one, and the model writes it."""

from __future__ import annotations

from enum import StrEnum


class ToolCallStyle(StrEnum):
    """The ways in which real gateways have been seen to stream tool calls; clients must read them all."""

    FRAGMENTS = "fragments"
    """id and name first, then the arguments in pieces: what OpenAI does."""
    WHOLE = "whole"
    """every call complete in one chunk of its own."""
    NULL_INDEX = "null_index"
    """as fragments, but `index` is null; only the first piece of a call names its id."""
    REPEATED_IDS = "repeated_ids"
    """as fragments, but every piece repeats id, type and name."""
    INTERLEAVED = "interleaved"
    """as fragments, but the pieces of several calls take turns."""
    WITH_TEXT = "with_text"
    """every call complete, in one chunk that carries text as well."""
