"""Prompts that print a JSON schema, or ask for a JSON object, and want the filled-in form as text.

A schema is any JSON object that has properties, whichever framework printed it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.rules.reading.evidence import Evidence
from opengradient_devnet.model.rules.reading.layout import json_values
from opengradient_devnet.model.rules.reading.text import sentences
from opengradient_devnet.model.rules.schemas.schema import fill

_SPEAKS_OF_FORMAT = re.compile(r"\bschema\b|\bJSON\b|\bformat(?:ted)?\b|\bkeys?\b", re.IGNORECASE)
_KEYS = re.compile(r"\b(?:keys?|fields?|JSON)\b", re.IGNORECASE)
_KEY = re.compile(r"['\"`](\w+)['\"`]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedSchema:
    """A JSON schema that a prompt prints, and the prompt without the talk about it."""

    schema: Mapping[str, Any]
    text: str

    def filled(self, *, background: str = "", known: Mapping[str, Any] | None = None) -> str:
        """The form, filled in, as JSON text."""
        evidence = Evidence(self.text, background=background, known=known)
        return json.dumps(fill(self.schema, evidence), ensure_ascii=False)


def read_printed_schema(asked: str) -> PrintedSchema | None:
    """The last JSON schema that `asked` prints, if it speaks of a schema at all."""
    if "schema" not in asked.lower():
        return None
    # Templates that were escaped once too often print every brace twice.
    for text in (asked, asked.replace("{{", "{").replace("}}", "}")):
        found = list(json_values(text))
        if schemas := [value for value, _, _ in found if _is_schema(value)]:
            for _, start, end in reversed(found):
                text = f"{text[:start]} {text[end:]}"  # noqa: PLW2901 - cut from the end, so offsets stay true
            return PrintedSchema(schema=schemas[-1], text=without_format_talk(text.replace("```", "")))
    return None


def json_object(asked: str, *, known: Mapping[str, Any] | None = None) -> str:
    """A JSON object with the keys that `asked` names; with the one key "answer" when it names none."""
    keys = [key for said in sentences(asked) if _KEYS.search(said) for key in _KEY.findall(said)] or ["answer"]
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": keys}
    evidence = Evidence(without_format_talk(asked) or asked, known=known)
    return json.dumps(fill(schema, evidence), ensure_ascii=False)


def without_format_talk(text: str) -> str:
    """`text` without the sentences that say how to answer rather than what."""
    return " ".join(sentence for sentence in sentences(text) if not _SPEAKS_OF_FORMAT.search(sentence))


def _is_schema(value: object) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("properties"), dict) or "$defs" in value)
