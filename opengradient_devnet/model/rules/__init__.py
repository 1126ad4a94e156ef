"""The rule model: a deterministic stand-in for a language model, for tests and demonstrations.

`reply` decides what to answer, by general rules over the request's structure; `model` delivers it. Around them,
one noun each: `conversation`, `media`, `text`, `clauses`, `evidence`, `schema`, `scalars`, `toolbox`, `plan`, `layout`,
`retrieval`, `selection`, `react`, `programs`, `prose`, `tokens`, `chunks`.

It does not know payments or HTTP, and it never recognises who asks.
"""

from opengradient_devnet.model.rules.model import RulesModel

__all__ = ["RulesModel"]
