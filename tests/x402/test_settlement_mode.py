from __future__ import annotations

from enum import Enum

import pytest

from opengradient_x402.errors import ConfigurationError
from opengradient_x402.settlement_mode import SettlementMode


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("PRIVATE", SettlementMode.PRIVATE),
        ("settle", SettlementMode.PRIVATE),
        ("SETTLE", SettlementMode.PRIVATE),
        ("batch", SettlementMode.BATCH),
        ("BATCH_HASHED", SettlementMode.BATCH),
        ("settle-batch", SettlementMode.BATCH),
        ("Settle_Batch", SettlementMode.BATCH),
        ("individual", SettlementMode.INDIVIDUAL),
        ("INDIVIDUAL_FULL", SettlementMode.INDIVIDUAL),
        ("settle-metadata", SettlementMode.INDIVIDUAL),
        ("x402SettlementMode.SETTLE_METADATA", SettlementMode.INDIVIDUAL),
    ],
)
def test_every_name_that_a_mode_has_had_is_understood(name, mode):
    assert SettlementMode.parse(name) is mode


def test_the_old_names_are_attributes_and_the_same_members():
    assert SettlementMode.SETTLE is SettlementMode.PRIVATE
    assert SettlementMode.SETTLE_BATCH is SettlementMode.BATCH_HASHED is SettlementMode.BATCH
    assert SettlementMode.SETTLE_METADATA is SettlementMode.INDIVIDUAL_FULL is SettlementMode.INDIVIDUAL
    assert [mode.value for mode in SettlementMode] == ["private", "batch", "individual"]


def test_members_of_another_sdks_enum_are_understood_by_name_and_by_value():
    class Theirs(Enum):
        SETTLE_METADATA = "individual"
        SOMETHING_NEW = "private"

    assert SettlementMode.parse(Theirs.SETTLE_METADATA) is SettlementMode.INDIVIDUAL
    assert SettlementMode.parse(Theirs.SOMETHING_NEW) is SettlementMode.PRIVATE


def test_the_wire_form_is_the_value():
    assert f"{SettlementMode.BATCH_HASHED}" == "batch"


@pytest.mark.parametrize("mode", ["", "public", "batches", None, 3, object()])
def test_an_unknown_mode_is_refused_and_never_becomes_batch(mode):
    with pytest.raises(ConfigurationError, match="private, batch, individual"):
        SettlementMode.parse(mode)
