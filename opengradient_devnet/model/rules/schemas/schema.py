"""Fills in a JSON schema from evidence: every value is valid, and comes from the prompt if possible.

Supported: `$ref`/`$defs`, anyOf, oneOf, allOf, enum, const, type lists, nullable, objects, dictionaries, arrays,
tuples, numeric bounds and multiples, lengths, the common string formats, and defaults. Not supported: `pattern`,
`not`, `if`/`then`, and references to other documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.rules.reading.clauses import clauses
from opengradient_devnet.model.rules.reading.evidence import Evidence
from opengradient_devnet.model.rules.reading.text import STOPWORDS, mentions, one_line, stems
from opengradient_devnet.model.rules.schemas.scalars import bounded, cut, formatted

Schema = Mapping[str, Any]

# Recursive schemas (a tree whose nodes hold nodes) have to end somewhere; what is optional ends first.
_DEEPEST = 6
_BOTTOM = 4 * _DEEPEST
# An alternative whose tag (a const or enum of it) the text names beats any number of matching words.
_TAGGED = 100
_MISSING: Any = object()


def fill(schema: Schema, evidence: Evidence) -> Any:
    """A JSON value that is valid for `schema`, from the facts of `evidence`."""
    return _Form(root=schema).value(schema, evidence, field=str(schema.get("title") or "value"), depth=0)


def needs(schema: Schema) -> tuple[int, int]:
    """How many numbers and how many strings the required properties of an object schema ask for."""
    form = _Form(root=schema)
    schema = form.resolve(schema)
    required = frozenset(schema.get("required") or ())
    kinds = [_kind(form.resolve(sub)) for name, sub in (schema.get("properties") or {}).items() if name in required]
    return sum(kind in {"integer", "number"} for kind in kinds), sum(kind == "string" for kind in kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    root: Schema

    def resolve(self, schema: Schema) -> Schema:
        """Follow `$ref` and merge `allOf`, so that what is left can be read off directly."""
        hops = 0
        while "$ref" in schema and hops < _DEEPEST:
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self._target(str(schema["$ref"])), **siblings}
            hops += 1
        if "allOf" in schema:
            schema = self._merged(schema)
        return schema

    def value(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> Any:
        """A value for one (sub)schema; `field` is the name under which it will stand."""
        if depth > _BOTTOM:
            raise ModelError(400, f"Invalid schema: {field!r} requires itself, so nothing can satisfy it.")
        schema = self.resolve(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._enum(schema, evidence, field=field)
        for combiner in ("anyOf", "oneOf"):
            if schema.get(combiner):
                return self._one_of(schema, schema[combiner], evidence, field=field, depth=depth)
        if _is_nullable(schema) and not self._offers(schema, evidence, field=field):
            return None
        makers: dict[str, Callable[..., Any]] = {
            "object": self._object,
            "array": self._array,
            "integer": self._number,
            "number": self._number,
            "boolean": self._boolean,
            "null": self._null,
        }
        return makers.get(_kind(schema), self._string)(schema, evidence, field=field, depth=depth)

    def _target(self, reference: str) -> Schema:
        node: Any = self.root
        for step in reference.lstrip("#").strip("/").split("/"):
            node = node.get(step.replace("~1", "/").replace("~0", "~"), {}) if step else node
        return node if isinstance(node, Mapping) else {}

    def _merged(self, schema: Schema) -> Schema:
        merged: dict[str, Any] = {}
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        for part in [*map(self.resolve, schema["allOf"]), rest]:
            for key, value in part.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *value]
                else:
                    merged[key] = value
        return merged

    def _enum(self, schema: Schema, evidence: Evidence, *, field: str) -> Any:
        options = schema["enum"]
        if evidence.known.get(field, _MISSING) in options:
            return evidence.known[field]
        picked = evidence.pick(options)
        return schema.get("default", options[0]) if picked is None else picked

    def _one_of(self, schema: Schema, options: list[Schema], evidence: Evidence, *, field: str, depth: int) -> Any:
        rest = {key: value for key, value in schema.items() if key not in {"anyOf", "oneOf", "discriminator"}}
        resolved = [self.resolve({**rest, **option}) for option in options]
        solid = [option for option in resolved if _kind(option) != "null"]
        nullable = len(solid) < len(resolved)
        if nullable and not (solid and depth < _DEEPEST and self._offers(solid[0], evidence, field=field)):
            return None
        chosen = max(solid, key=lambda option: self._fit(option, evidence))
        return self.value(chosen, evidence, field=field, depth=depth + 1)

    def _fit(self, option: Schema, evidence: Evidence) -> int:
        """How well an alternative suits the evidence. Ties go to the first, as `max` keeps it."""
        words = [str(option.get("title", ""))]
        for name, sub in (option.get("properties") or {}).items():
            tags = [sub["const"]] if "const" in sub else sub.get("enum", [])
            if any(mentions(evidence.text, str(tag)) and str(tag) not in STOPWORDS for tag in tags):
                return _TAGGED
            words.append(name)
        if _kind(option) in {"integer", "number"}:
            return 1 + int(evidence.has_numbers)
        if _kind(option) == "string":
            # A string beside a number is often another spelling of it (Decimal): no reason to prefer it.
            return int("pattern" not in option)
        return len(stems(" ".join(words)) & stems(evidence.text))

    def _offers(self, schema: Schema, evidence: Evidence, *, field: str) -> bool:
        """Whether the evidence has something for an optional value: if not, it stays null."""
        if field in evidence.known:
            return True
        kind = _kind(schema)
        if kind in {"integer", "number"}:
            return evidence.has_numbers
        if kind == "string":
            return _says(evidence, field) and evidence.has_strings
        return _says(evidence, field) or kind not in {"boolean", "array", "object"}

    def _object(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        if not properties:
            return self._dictionary(schema, evidence, field=field, depth=depth)
        if isinstance(known := evidence.known.get(field), dict):
            evidence = Evidence(evidence.text, known={**evidence.known, **known})
        required = frozenset(schema.get("required") or ())
        named = self._named(properties, evidence)
        filled: dict[str, Any] = {}
        for name, sub in properties.items():
            if name in named:
                filled[name] = named[name]
            elif name in required or self._wants(sub, evidence, field=name, depth=depth):
                filled[name] = self.value(sub, evidence, field=name, depth=depth + 1)
        return filled

    def _named(self, properties: Mapping[str, Schema], evidence: Evidence) -> dict[str, str]:
        """The strings that the text calls by the name of a field, before another field can take them."""
        plain = {}
        for name, sub in properties.items():
            resolved = self.resolve(sub)
            options = [resolved, *map(self.resolve, resolved.get("anyOf") or ())]
            text = next((option for option in options if option.get("type") == "string"), None)
            if text is not None and not text.keys() & {"enum", "const", "format", "pattern"}:
                plain[name] = text
        found = ((name, text, evidence.take_named(name)) for name, text in plain.items() if name not in evidence.known)
        return {name: cut(text, value) for name, text, value in found if value is not None}

    def _wants(self, sub: Schema, evidence: Evidence, *, field: str, depth: int) -> bool:
        """Whether an optional property is filled in: named by the text, or without a default and at hand."""
        if depth >= _DEEPEST:
            return False
        sub = self.resolve(sub)
        if field in evidence.known or (_says(evidence, field) and self._offers(sub, evidence, field=field)):
            return True
        return "default" not in sub and not _is_nullable(sub) and self._offers(sub, evidence, field=field)

    def _dictionary(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> dict[str, Any]:
        known = evidence.known.get(field)
        if isinstance(known, dict):
            return dict(known)
        values = schema.get("additionalProperties")
        if not isinstance(values, Mapping):
            return dict(evidence.pairs()) if values is not False else {}
        return {
            key: self.value(values, Evidence(text), field=key, depth=depth + 1)
            for key, text in evidence.pairs().items()
        }

    def _array(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(item, evidence, field=field, depth=depth + 1) for item in schema["prefixItems"]]
        least = int(schema.get("minItems", 0))
        if depth >= _DEEPEST and not least:
            return []
        items = self.resolve(schema.get("items") or {"type": "string"})
        known = evidence.known.get(field)
        values = (
            [self._known_item(items, evidence, item, field=field, depth=depth) for item in known]
            if isinstance(known, list)
            else self._items(items, evidence, field=field, depth=depth)
        )
        if schema.get("uniqueItems"):
            values = [value for index, value in enumerate(values) if value not in values[:index]]
        while len(values) < max(least, 0 if isinstance(known, list) else min(1, schema.get("maxItems", 1))):
            values.append(self.value(items, evidence, field=_singular(field), depth=depth + 1))
        return values[: schema.get("maxItems")]

    def _known_item(self, items: Schema, evidence: Evidence, item: Any, *, field: str, depth: int) -> Any:
        if not isinstance(item, dict):
            return item
        known = Evidence(evidence.text, known={**evidence.known, **item})
        return self.value(items, known, field=_singular(field), depth=depth + 1)

    def _items(self, items: Schema, evidence: Evidence, *, field: str, depth: int) -> list[Any]:
        kind = _kind(items)
        if items.get("enum"):
            return [option for option in items["enum"] if mentions(evidence.text, str(option))]
        if kind in {"integer", "number"}:
            return [bounded(items, number) for number in evidence.take_numbers()]
        if kind == "string":
            return [cut(items, text) for text in evidence.take_strings()]
        if kind == "object":
            return self._rows(items, evidence, field=field, depth=depth)
        return []

    def _rows(self, items: Schema, evidence: Evidence, *, field: str, depth: int) -> list[Any]:
        """One object for every clause that has what the object's required fields need."""
        numbers, strings = needs({**items, "$defs": self.root.get("$defs", {})})
        rows = []
        for clause in clauses(evidence.text) if numbers + strings else []:
            own = Evidence(clause.text, known=evidence.known)
            if own.number_count() >= numbers and (own.has_strings or not strings):
                rows.append(self.value(items, own, field=_singular(field), depth=depth + 1))
        return rows

    def _number(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> float:  # noqa: ARG002
        known = evidence.known.get(field, _MISSING)
        if isinstance(known, int | float):
            return bounded(schema, known)
        found = evidence.take_number(field, hint=str(schema.get("description") or ""))
        return bounded(schema, schema.get("default") or 0 if found is None else found)

    def _boolean(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> bool:  # noqa: ARG002
        known = evidence.known.get(field)
        if isinstance(known, bool):
            return known
        if evidence.denies(field):
            return False
        return True if _says(evidence, field) else bool(schema.get("default", True))

    def _null(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> None:  # noqa: ARG002
        return None

    def _string(self, schema: Schema, evidence: Evidence, *, field: str, depth: int) -> str:  # noqa: ARG002
        known = evidence.known.get(field)
        if known is not None and not isinstance(known, dict | list):
            return cut(schema, str(known))
        if form := str(schema.get("format") or ""):
            return formatted(form, evidence, field=field)
        found = evidence.take_string(field)
        if found is None:
            found = str(schema.get("default") or f"{field}: {one_line(evidence.text)[:80] or 'unspecified'}")
        return cut(schema, found)


def _kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if kind is None and ("properties" in schema or "additionalProperties" in schema):
        return "object"
    if kind is None and ("items" in schema or "prefixItems" in schema):
        return "array"
    return str(kind or "string")


def _is_nullable(schema: Schema) -> bool:
    kind = schema.get("type")
    options = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
    return (
        bool(schema.get("nullable"))
        or (isinstance(kind, list) and "null" in kind and len(kind) > 1)
        or any(option.get("type") == "null" for option in options)
    )


def _says(evidence: Evidence, field: str) -> bool:
    return bool(stems(field) & stems(evidence.text)) or mentions(evidence.text, field)


def _singular(field: str) -> str:
    return field.removesuffix("s")
