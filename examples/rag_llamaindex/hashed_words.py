"""`HashedWords`: an embedding that works offline and uses only the words of a text.

Each word is hashed to a place in a vector, and weighted by how rare it is in the corpus that the embedding was made
for (TF-IDF with the hashing trick). It is deterministic and needs no download and no key. It ignores meaning: "boat" is
as far from "ship" as from "salt". Use it for demonstrations only, and a real embedding model for everything else.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import Self

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field

_WORD = re.compile(r"[a-z0-9]+")
_ENDINGS = re.compile(r"(?<=\w{3})(?:ing|ed|es|s)\Z")


class HashedWords(BaseEmbedding):
    """Embeds word counts, hashed into `dimensions` places and weighted by rarity. Its vectors have length 1."""

    dimensions: int = Field(default=1024, gt=0)
    corpus_size: int = 0
    texts_with_word: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "HashedWords"

    @classmethod
    def of_corpus(cls, texts: Iterable[str]) -> Self:
        """Return an embedding whose word weights come from these texts."""
        counts = [set(words(text)) for text in texts]
        return cls(corpus_size=len(counts), texts_with_word=Counter(word for found in counts for word in found))

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        for word, count in Counter(words(text)).items():
            vector[place(word, self.dimensions)] += (1 + math.log(count)) * self._rarity(word)
        length = math.sqrt(sum(weight * weight for weight in vector)) or 1.0
        return [weight / length for weight in vector]

    def _rarity(self, word: str) -> float:
        return 1 + math.log((1 + self.corpus_size) / (1 + self.texts_with_word.get(word, 0)))

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case and without the most common endings."""
    return [_ENDINGS.sub("", word) for word in _WORD.findall(text.lower())]


def place(word: str, dimensions: int) -> int:
    """Return the place of a word in the vector. It is the same in every process, unlike Python's own hash."""
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest()) % dimensions
