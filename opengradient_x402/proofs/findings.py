"""What a check found out: a statement, how it stands, and why. Plain data, the same for programs and for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Standing(StrEnum):
    """How a statement stands after it was checked."""

    PROVEN = "proven"
    """It follows from evidence that was checked."""
    NOT_PROVEN = "not_proven"
    """The evidence is missing or was not reachable: it may be true."""
    REFUTED = "refuted"
    """The evidence contradicts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement (`about` names its subject: a call id, a transaction) and how it stands."""

    statement: str
    about: str
    standing: Standing
    why: str

    def to_json(self) -> dict[str, str]:
        """A flat dict."""
        return {
            "statement": self.statement,
            "about": self.about,
            "standing": self.standing.value,
            "why": self.why,
        }


def proven(statement: str, *, about: str, why: str) -> Finding:
    """A finding that holds."""
    return Finding(statement=statement, about=about, standing=Standing.PROVEN, why=why)


def not_proven(statement: str, *, about: str, why: str) -> Finding:
    """A finding that could not be decided."""
    return Finding(statement=statement, about=about, standing=Standing.NOT_PROVEN, why=why)


def refuted(statement: str, *, about: str, why: str) -> Finding:
    """A finding that the evidence contradicts."""
    return Finding(statement=statement, about=about, standing=Standing.REFUTED, why=why)


def overall(findings: Iterable[Finding]) -> Standing:
    """The weakest standing: one refuted statement refutes the whole; nothing checked proves nothing."""
    standings = {finding.standing for finding in findings}
    if Standing.REFUTED in standings:
        return Standing.REFUTED
    if Standing.NOT_PROVEN in standings or not standings:
        return Standing.NOT_PROVEN
    return Standing.PROVEN
