"""How much of the house a call walks through: a reader who follows one must be able to keep it in mind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from opengradient_x402.gateway.client import GatewayClient

OURS = "opengradient_x402"
LISTENERS = ("opengradient_x402.telemetry", "opengradient_x402.payment.reports")
"""Entered only when somebody listens: other tests of this process may have loaded OpenTelemetry."""
BODY = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "hi"}]}


def _walk(call: Callable[[], Any]) -> tuple[set[str], int]:
    """The modules of ours that this thread enters during the call, and the function calls from one to another."""
    entered: set[str] = set()
    hops = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal hops
        name = str(frame.f_globals.get("__name__"))
        if event != "call" or not name.startswith(OURS) or name.startswith(LISTENERS):
            return
        entered.add(name)
        caller = str(frame.f_back.f_globals.get("__name__")) if frame.f_back is not None else ""
        hops += caller.startswith(OURS) and caller != name

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered, hops


def test_a_call_in_a_session_enters_at_most_22_modules_and_the_first_paid_one_45(client: GatewayClient) -> None:
    first, _ = _walk(lambda: client.chat(BODY))
    assert len(first) <= 45, sorted(first)
    client.chat(BODY)

    in_a_session, hops = _walk(lambda: client.chat(BODY))
    assert len(in_a_session) <= 22, sorted(in_a_session)
    assert hops <= 90
