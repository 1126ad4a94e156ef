"""What the tests of the LlamaIndex face share: models that pay on the devnet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_index_opengradient import OpenGradient
from opengradient_devnet import Account, Devnet


def paid_model(net: Devnet, account: Account, **overrides: Any) -> OpenGradient:
    """A model that `account` pays for on `net`."""
    params = {"model": "openai/gpt-5", "private_key": account.private_key, "network": f"{net.gateway_url}/network"}
    return OpenGradient(**{**params, **overrides})


@pytest.fixture
def make_llm(net: Devnet, account: Account) -> Iterator[Callable[..., OpenGradient]]:
    """Makes models that the test's wallet pays for; closes them afterwards."""
    made: list[OpenGradient] = []

    def make(**overrides: Any) -> OpenGradient:
        made.append(paid_model(net, account, **overrides))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture
def llm(make_llm: Callable[..., OpenGradient]) -> OpenGradient:
    """A model that the test's wallet pays for."""
    return make_llm()
