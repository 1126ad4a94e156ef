"""Two hundred kinds of lies, told by somebody who has the payer's key: each makes its statement fall."""

from __future__ import annotations

from collections import Counter

import pytest

from opengradient_devnet import Scheme
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.proofs.findings import Refuted, Statement
from opengradient_x402.proofs.history import head_of
from opengradient_x402.proofs.verification import verify_bundle
from support.forgeries import FORGERIES
from support.forging import UNREADABLE, Forgery
from support.matrix import one_in
from support.odd_forgeries import EARLIER
from support.payers import network_of

pytestmark = pytest.mark.devnet(schemes=[Scheme.UPTO, Scheme.BATCH_SETTLEMENT])


@pytest.fixture(scope="module")
def honest(forged_world) -> Counter:
    """How often each statement stands how, in the bundle that nobody forged."""
    verification = verify_bundle(forged_world.bundle.to_bytes(), network=network_of(forged_world.net))
    assert verification.of(Refuted) == [], verification.of(Refuted)
    return Counter((finding.statement, finding.kind) for finding in verification.findings)


@pytest.mark.parametrize("forgery", one_in(4, FORGERIES), ids=[forgery.name for forgery in FORGERIES])
def test_a_lie_makes_its_statement_fall(forged_world, honest, forgery: Forgery):
    content = forgery.make(forged_world)
    if forgery.to == UNREADABLE:
        with pytest.raises(BundleUnreadable, match=r"Nothing was proven|Nothing in it can be relied on"):
            verify_bundle(content, network=network_of(forged_world.net))
        return
    verification = verify_bundle(content, network=network_of(forged_world.net))
    fallen = [item for item in verification.findings if (item.statement, item.kind) == (forgery.falls, forgery.to)]
    fallen = [item for item in fallen if forgery.why in item.why]
    expected = 0 if forgery.why else honest[forgery.falls, forgery.to]
    assert len(fallen) > expected, [item for item in verification.findings if item.statement is forgery.falls]


@pytest.mark.parametrize("name", EARLIER)
def test_a_history_that_does_not_go_on_is_found_by_whoever_kept_a_head(forged_world, name):
    content, network = EARLIER[name](forged_world), network_of(forged_world.net)
    before = forged_world.bundle if "shorter" in name else forged_world.earlier
    for earlier in (before.to_bytes(), head_of(before)):
        verification = verify_bundle(content, network=network, is_offline=True, earlier=earlier)
        (finding,) = [item for item in verification.findings if item.statement is Statement.CONTINUED]
        assert isinstance(finding, Refuted), finding


def test_there_are_two_hundred_kinds_of_them():
    assert len({forgery.name for forgery in FORGERIES}) == len(FORGERIES) >= 200
