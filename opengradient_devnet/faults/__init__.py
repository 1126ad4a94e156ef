"""What a gateway, its enclave and its chain can be told to do wrong, and how often.

Each fault is a small value, in the module of what goes wrong. `armed` holds those that wait, `parse_fault` makes one of
JSON. How a fault is carried out is written where the right behaviour is.
"""

from opengradient_devnet.faults.answer import (
    AnswerStatus,
    DripHeaders,
    EmptyStream,
    ErrorEvent,
    GarbleBody,
    HangUp,
    OmitDone,
    OmitUsage,
    RawEvent,
    Redirect,
    SlowDrip,
    StreamStyle,
    TruncateStream,
)
from opengradient_devnet.faults.armed import FAULT_KINDS, Fault, Faults, FaultUnknown, parse_fault
from opengradient_devnet.faults.challenge import AlterChallenge, AlterTerms, HugeChallenge, RawChallenge, RefusePayment
from opengradient_devnet.faults.channels import ForgeCorrection, LieAboutCharge
from opengradient_devnet.faults.clock import OmitDate, SkewClock
from opengradient_devnet.faults.node import LagNode, NodeCut, NodeDrip, NodeError, NodeNull, NodeStatus
from opengradient_devnet.faults.price import AlterOpgPrice, InflateCost
from opengradient_devnet.faults.proof import AddUnsigned, ForgeAttestation, ForgeProof
from opengradient_devnet.faults.settlement import (
    DemandAnew,
    FailSettlement,
    ForgeSessionId,
    KillSession,
    NeverSettle,
    SettleAndRefuse,
    SettleAtCap,
    SettleForSomebodyElse,
    WrongTransaction,
)

__all__ = [
    "FAULT_KINDS",
    "AddUnsigned",
    "AlterChallenge",
    "AlterOpgPrice",
    "AlterTerms",
    "AnswerStatus",
    "DemandAnew",
    "DripHeaders",
    "EmptyStream",
    "ErrorEvent",
    "FailSettlement",
    "Fault",
    "FaultUnknown",
    "Faults",
    "ForgeAttestation",
    "ForgeCorrection",
    "ForgeProof",
    "ForgeSessionId",
    "GarbleBody",
    "HangUp",
    "HugeChallenge",
    "InflateCost",
    "KillSession",
    "LagNode",
    "LieAboutCharge",
    "NeverSettle",
    "NodeCut",
    "NodeDrip",
    "NodeError",
    "NodeNull",
    "NodeStatus",
    "OmitDate",
    "OmitDone",
    "OmitUsage",
    "RawChallenge",
    "RawEvent",
    "Redirect",
    "RefusePayment",
    "SettleAndRefuse",
    "SettleAtCap",
    "SettleForSomebodyElse",
    "SkewClock",
    "SlowDrip",
    "StreamStyle",
    "TruncateStream",
    "WrongTransaction",
    "parse_fault",
]
