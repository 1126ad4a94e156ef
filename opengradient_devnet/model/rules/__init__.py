"""The rule model: a deterministic stand-in for a language model, for tests and demonstrations.

`reply` decides what to answer, by general rules over the request's structure. `model` makes an answer of it, and
`chunks` cuts the answer for a stream. `reading/` reads a prompt, `schemas/` fills in JSON schemas, `writing/` writes
each kind of answer. No rule looks for a particular caller.
"""

from opengradient_devnet.model.rules.model import RulesModel

__all__ = ["RulesModel"]
