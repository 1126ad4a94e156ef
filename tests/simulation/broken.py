"""What is raised when something does not hold."""

from __future__ import annotations


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
