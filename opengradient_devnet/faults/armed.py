"""The faults that are armed: what is to go wrong, and how often.

`Faults` holds them; the parts of the devnet ask it for the kind that they can carry out. A fault strikes `times` times
(None: until cleared), after skipping the first `skip` occasions. `parse_fault` reads the JSON of the `POST /faults`
control route.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from opengradient_devnet.faults import answer, challenge, channels, clock, node, price, proof, settlement
from opengradient_devnet.tool_call_styles import ToolCallStyle

Fault = (
    challenge.AlterTerms
    | challenge.AlterChallenge
    | challenge.RawChallenge
    | challenge.HugeChallenge
    | challenge.RefusePayment
    | settlement.KillSession
    | settlement.ForgeSessionId
    | settlement.SettleAtCap
    | settlement.NeverSettle
    | settlement.FailSettlement
    | settlement.SettleForSomebodyElse
    | settlement.WrongTransaction
    | answer.AnswerStatus
    | answer.Redirect
    | answer.HangUp
    | answer.GarbleBody
    | answer.TruncateStream
    | answer.OmitDone
    | answer.ErrorEvent
    | answer.EmptyStream
    | answer.RawEvent
    | answer.SlowDrip
    | answer.StreamStyle
    | answer.OmitUsage
    | clock.SkewClock
    | proof.ForgeProof
    | proof.ForgeAttestation
    | proof.AddUnsigned
    | answer.DripHeaders
    | clock.OmitDate
    | settlement.SettleAndRefuse
    | settlement.DemandAnew
    | channels.LieAboutCharge
    | channels.ForgeCorrection
    | price.InflateCost
    | price.AlterOpgPrice
    | node.LagNode
    | node.NodeStatus
    | node.NodeNull
    | node.NodeError
    | node.NodeCut
    | node.NodeDrip
)
_Kind = TypeVar("_Kind", bound=Fault)


class FaultUnknown(ValueError):
    """The JSON names no fault, or gives it members that it does not have."""


def _name(kind: type[Fault]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


FAULT_KINDS: dict[str, type[Fault]] = {_name(kind): kind for kind in Fault.__args__}


def parse_fault(name: str, members: Mapping[str, Any]) -> Fault:
    """`("slow_drip", {"pace_s": 0.1})` -> `SlowDrip(pace_s=0.1)`."""
    kind = FAULT_KINDS.get(name)
    if kind is None:
        raise FaultUnknown(f"There is no fault {name!r}; there are {', '.join(FAULT_KINDS)}.")
    known = {field.name for field in dataclasses.fields(kind)}
    if not known.issuperset(members):
        raise FaultUnknown(f"{name} has the members {sorted(known)}, not {sorted(set(members) - known)}.")
    if "tool_calls" in members:
        members = {**members, "tool_calls": ToolCallStyle(members["tool_calls"])}
    try:
        return kind(**members)
    except TypeError as exc:
        raise FaultUnknown(f"{name}: {exc}") from exc


@dataclass(slots=True, kw_only=True)
class _Armed:
    fault: Fault
    left: int | None
    skip: int


class Faults:
    """The faults that are armed, and those that have struck. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._struck: list[Fault] = []

    def inject(self, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Arm `fault` for `times` occasions (None: all, until `clear`), after `skip` that go well."""
        if times is not None and times < 1:
            raise ValueError(f"A fault cannot strike {times} times. Give 1 or more, or None for all times.")
        with self._lock:
            self._armed.append(_Armed(fault=fault, left=times, skip=skip))

    def clear(self) -> None:
        """Disarm everything; what has struck stays on record."""
        with self._lock:
            self._armed.clear()

    @property
    def struck(self) -> list[Fault]:
        """Every fault that was carried out, in order, once per strike."""
        with self._lock:
            return list(self._struck)

    def take(
        self, kind: type[_Kind], *, where: Callable[[_Kind], bool] | None = None, **criteria: object
    ) -> _Kind | None:
        """The fault of this kind that strikes now, if one does; `criteria` are members it must have, `where` a test."""
        with self._lock:
            for armed in self._armed:
                fault = armed.fault
                if not isinstance(fault, kind) or not _meets(fault, criteria) or not (where is None or where(fault)):
                    continue
                if armed.skip:
                    armed.skip -= 1
                    return None
                if armed.left is not None:
                    armed.left -= 1
                    if armed.left == 0:
                        self._armed.remove(armed)
                self._struck.append(fault)
                return fault
            return None

    def lasting(self, kind: type[_Kind]) -> _Kind | None:
        """The fault of this kind that is armed without limit, without counting a strike."""
        with self._lock:
            for armed in self._armed:
                if isinstance(armed.fault, kind) and armed.left is None and not armed.skip:
                    return armed.fault
            return None


def _meets(fault: Fault, criteria: Mapping[str, object]) -> bool:
    return all(getattr(fault, member) == value for member, value in criteria.items())
