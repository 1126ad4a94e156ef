"""A gateway that also offers what cannot be paid is paid by what can."""

from __future__ import annotations

import pytest

from opengradient_devnet.faults import AlterChallenge
from opengradient_x402.errors import ChallengeInvalid
from support.odd_entries import ODD_ENTRIES
from support.payers import PROMPT, opg_balance, settled_receipts


def test_a_gateway_is_paid_by_the_entry_that_is_known_among_odd_ones(net, payments, client):
    net.faults.inject(AlterChallenge(entries=[entry for entry, _ in ODD_ENTRIES.values()]))
    receipt = client.chat(PROMPT).receipt
    assert (receipt.scheme, receipt.outcome) == ("upto", "ok")
    assert [known.status for known in settled_receipts(net, payments)] == ["settled"]


def test_a_gateway_that_offers_odd_entries_alone_is_not_paid_and_each_reason_is_named(net, payments, client, account):
    before = opg_balance(net, account.address)
    net.faults.inject(AlterChallenge(entries=[entry for entry, _ in ODD_ENTRIES.values()], only_entries=True))
    with pytest.raises(ChallengeInvalid) as caught:
        client.chat(PROMPT)
    assert all(reason in str(caught.value) for _, reason in ODD_ENTRIES.values())
    assert caught.value.money == "not_paid"
    assert payments.ledger.authorizations().result() == []
    assert opg_balance(net, account.address) == before
