"""A hundred kinds of lies, told by somebody who has the payer's key: each makes its statement fall."""

from __future__ import annotations

from collections import Counter

import pytest

from opengradient_devnet import Scheme
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.proofs.findings import Refuted
from opengradient_x402.proofs.verification import verify_bundle
from support.forgeries import FORGERIES
from support.forging import UNREADABLE, Forgery
from support.payers import network_of

pytestmark = pytest.mark.devnet(schemes=[Scheme.UPTO, Scheme.BATCH_SETTLEMENT])


@pytest.fixture(scope="module")
def honest(forged_world) -> Counter:
    """How often each statement stands how, in the bundle that nobody forged."""
    verification = verify_bundle(forged_world.bundle.to_bytes(), network=network_of(forged_world.net))
    assert verification.of(Refuted) == [], verification.of(Refuted)
    return Counter((finding.statement, finding.kind) for finding in verification.findings)


@pytest.mark.parametrize("forgery", FORGERIES, ids=[forgery.name for forgery in FORGERIES])
def test_a_lie_makes_its_statement_fall(forged_world, honest, forgery: Forgery):
    content = forgery.make(forged_world)
    if forgery.to == UNREADABLE:
        with pytest.raises(BundleUnreadable, match="Nothing was proven"):
            verify_bundle(content, network=network_of(forged_world.net))
        return
    verification = verify_bundle(content, network=network_of(forged_world.net))
    fallen = [item for item in verification.findings if (item.statement, item.kind) == (forgery.falls, forgery.to)]
    fallen = [item for item in fallen if forgery.why in item.why]
    expected = 0 if forgery.why else honest[forgery.falls, forgery.to]
    assert len(fallen) > expected, [item for item in verification.findings if item.statement is forgery.falls]


def test_there_are_a_hundred_kinds_of_them():
    assert len({forgery.name for forgery in FORGERIES}) == len(FORGERIES) >= 100
