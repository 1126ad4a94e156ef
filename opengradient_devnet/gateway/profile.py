"""How a gateway behaves where gateways differ: one frozen value, read by every part that behaves.

`HELPFUL` is the devnet's own way: errors that explain, settlement at once, everything listed and quoted. The others are
what the code of real gateways does, as measured (on 2026-11-27, with the official facilitator and OpenGradient's own).
No part asks for a profile's name: it asks for the one thing that it has to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opengradient_devnet.gateway.pricing import BUILT_IN_PRICES
from opengradient_devnet.tool_call_styles import ToolCallStyle


class ProfileUnknown(ValueError):
    """No gateway is known by that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayProfile:
    """One way to behave. The defaults are the helpful ones."""

    name: str

    prices: Path = BUILT_IN_PRICES
    """what is sold, unless the devnet is given a list of its own."""
    lists_models: bool = True
    """whether there is a /v1/models."""
    quotes_costs: bool = True
    """whether answers say what they cost."""

    idle_timeout_s: float = 100.0
    """a session without a call for this long is settled."""
    max_age_s: float = 600.0
    closes_sessions_in_use: bool = False
    """whether the idle time runs on while a call is being answered."""
    closes_sessions_at_cap: bool = True
    """whether a used-up session ends; if not, its further calls are served, and never paid."""
    max_timeout_s: int = 300
    """how long a payment must be valid."""
    settlement_delay_s: float | None = None
    """None: payments and individual data are settled at once. Else by a job, this much later; answers name the job."""

    writes_problems: bool = False
    """whether 400, 404 and 405 are application/problem+json."""
    hides_failures: bool = False
    """whether every failure of the model, and of reading the messages, is the same 500 without a reason; in a stream
    it is a 200 with one error event."""
    failure_delay_s: float = 0.0
    """hidden retries before a failure is told."""
    unforwarded: frozenset[str] = frozenset()
    """parameters that are hashed, and not passed on to the model."""
    says_length: bool = True
    """whether an answer that was cut says so; if not, its finish_reason is `stop` or `tool_calls`."""
    tool_calls: ToolCallStyle = ToolCallStyle.FRAGMENTS
    """how tool calls come in streams."""
    text_completion: Literal["completion", "choices"] = "completion"
    """where /v1/completions puts its text: in a member `completion`, or in `choices[].text`."""
    shows_paywall: bool = False
    """whether a browser gets a page instead of a challenge."""

    individual_stream: Literal["event", "headers"] = "event"
    """where a stream has its proof and data settlement: in the final event, or in headers, so that the whole answer is
    waited for before the first byte."""
    billing_delay_s: float | None = None
    """None: a stream is billed before its end can be seen. Else this long after [DONE], and only for a client that has
    not hung up by then; otherwise the call is in no bill and in no batch."""
    batch_size: int = 64
    batch_interval_s: float = 30.0
    """a batch is written at the latest this long after its first call."""
    batch_idle_s: float | None = None
    """a batch is also written when no call came for this long."""


HELPFUL = GatewayProfile(name="helpful")

# tee-gateway cb95a5c of 2026-04-28 with og-x402 0.0.2.dev8, and OpenGradient's facilitator of 2026-07.
GATEWAY_2026_04 = GatewayProfile(
    name="gateway-2026-04",
    prices=Path(__file__).with_name("prices_2026_04.json"),
    lists_models=False,
    quotes_costs=False,
    closes_sessions_in_use=True,
    closes_sessions_at_cap=False,
    max_timeout_s=3600,
    settlement_delay_s=2.0,
    writes_problems=True,
    hides_failures=True,
    failure_delay_s=1.3,
    unforwarded=frozenset({"stop", "web_search"}),
    says_length=False,
    tool_calls=ToolCallStyle.WHOLE,
    text_completion="choices",
    shows_paywall=True,
    individual_stream="headers",
    billing_delay_s=0.05,
    batch_size=20,
    batch_idle_s=300.0,
    batch_interval_s=900.0,
)

PROFILES = {profile.name: profile for profile in (HELPFUL, GATEWAY_2026_04)}


def profile_named(name: str) -> GatewayProfile:
    """The profile of that name; raises ProfileUnknown."""
    if name not in PROFILES:
        raise ProfileUnknown(f"No gateway {name!r} is known; there are {', '.join(PROFILES)}. Nothing was started.")
    return PROFILES[name]
