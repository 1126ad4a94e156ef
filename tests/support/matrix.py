"""Which cells of a large matrix of tests run by default; the others have the mark `matrix`, and .ci/run runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(share: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of which the first, and then every `share`-th one, runs by default."""
    return [pytest.param(value, marks=() if at % share == 0 else pytest.mark.matrix) for at, value in enumerate(values)]
