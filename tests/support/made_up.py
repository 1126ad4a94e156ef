"""Evidence that somebody made up: an answer of a node, or a blob, with one part of another kind."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace

from opengradient_x402.proofs.bundle import Bundle, Record

ODD = [
    None, 0, -1, 1.5, True, "", "0x", "0xzz", "0x" + "f" * 64, "0x" + "0" * 40, [], {}, [[]], [None], {"a": 1}, "0x1",
    "latest", ["0x"] * 5, "-0x1", " 0x1 ", "é", "0x" + "f" * 5000,
]  # fmt: skip


def places_in(value, at=()):
    yield at
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places_in(inner, (*at, name))


def changed(value, chance: random.Random):
    place = chance.choice(list(places_in(value)))
    if not place:
        return chance.choice(ODD)
    value = json.loads(json.dumps(value))
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    if chance.random() < 0.15:
        del inner[place[-1]]
    else:
        inner[place[-1]] = chance.choice(ODD)
    return value


def made_up(bundle: Bundle, seed: int) -> bytes:
    """The bundle with one piece of its evidence changed at random, unsigned."""
    chance = random.Random(seed)
    records = list(bundle.records)
    index = chance.choice([i for i, record in enumerate(records) if record.kind in ("rpc", "blob")])
    body = json.loads(json.dumps(dict(records[index].body)))
    if records[index].kind == "rpc":
        body["result"] = changed(body["result"], chance)
    else:
        blob = changed(json.loads(base64.b64decode(body["content_base64"])), chance)
        body["content_base64"] = base64.b64encode(json.dumps(blob).encode()).decode()
    records[index] = Record(records[index].kind, body)
    return replace(bundle, records=tuple(records), signature=None).to_bytes()
