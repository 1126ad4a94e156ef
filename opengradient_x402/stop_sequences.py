"""`stop`, applied to text as it streams: gateways do not apply it (docs/wire.md, "What gateways do not do").

Pure; does not know where the text comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def stop_sequences(stop: Any) -> tuple[str, ...]:
    """`stop` as the wire allows it (a string, a list, or nothing) as a tuple."""
    if not stop:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


class StopCutter:
    """Applies `stop` sequences to streamed text, since gateways hash them but do not apply them."""

    __slots__ = ("_held", "_longest", "_sequences", "is_cut")

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequence for sequence in sequences if sequence)
        self._longest = max((len(sequence) for sequence in self._sequences), default=0)
        self._held = ""
        self.is_cut = False

    def pass_on(self, text: str) -> str:
        """The part of the text so far that can be shown: what may yet become a stop sequence is held back."""
        if self.is_cut:
            return ""
        text = self._held + text
        ends = [at for sequence in self._sequences if (at := text.find(sequence)) >= 0]
        if ends:
            self.is_cut, self._held = True, ""
            return text[: min(ends)]
        keep = self._suspicious_tail(text)
        shown, self._held = (text[:-keep], text[-keep:]) if keep else (text, "")
        return shown

    def release(self) -> str:
        """What was held back when the text ended."""
        held, self._held = self._held, ""
        return held

    def _suspicious_tail(self, text: str) -> int:
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(sequence.startswith(tail) for sequence in self._sequences):
                return size
        return 0
