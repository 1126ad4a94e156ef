from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.forging import World, world
from support.payers import PROMPT, client_for, settled_receipts


@pytest.fixture(scope="module")
def forged_world(net, tmp_path_factory) -> Iterator[World]:
    """A devnet with a wallet whose bundles are forged; nothing on its chain changes any more."""
    with world(net, tmp_path_factory.mktemp("forged")) as made:
        yield made


@pytest.fixture
def paid(net, payments):
    """Payments with one settled call."""
    with client_for(payments) as client:
        client.chat(PROMPT)
    settled_receipts(net, payments)
    return payments
