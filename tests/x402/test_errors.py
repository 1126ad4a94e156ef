from __future__ import annotations

import copy
import pickle

import pytest

from opengradient_x402 import errors
from opengradient_x402.errors import MoneyOutcome, OpenGradientError


def every_error() -> list[type[OpenGradientError]]:
    found, pending = [], [OpenGradientError]
    while pending:
        found.append(kind := pending.pop())
        pending.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_pickling_and_copying_with_all_they_carry(kind, duplicate):
    error = kind("what happened", call_id="call-1")
    vars(error).update(status_code=503, kind="timeout", is_retryable=True)
    twin = duplicate(error)
    assert type(twin) is kind
    assert str(twin) == twin.message == "what happened"
    assert vars(twin) == vars(error)
    assert (twin.kind, twin.is_retryable, twin.money) == ("timeout", True, error.money)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_the_branch_of_the_tree_says_what_became_of_the_money(kind):
    expected = (
        MoneyOutcome.NOT_PAID
        if issubclass(kind, errors.NotPaid)
        else MoneyOutcome.PAID
        if issubclass(kind, errors.PaidButFailed)
        else MoneyOutcome.UNKNOWN
    )
    assert kind("x").money == expected == kind.money
    assert expected in ("not_paid", "unknown", "paid")


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_nothing_is_retryable_by_itself_once_money_may_have_moved(kind):
    if kind.money != MoneyOutcome.NOT_PAID:
        assert kind("x").is_retryable is False


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    for kind in every_error():
        assert kind.__name__ in (errors.__doc__ or "")


def test_configuration_errors_are_value_errors_too():
    with pytest.raises(ValueError, match="no such"):
        raise errors.UnknownNetwork("no such network")
