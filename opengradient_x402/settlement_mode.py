"""How much about a call goes on chain: the settlement mode, under every name that it has had.

Knows the names only. Payment is the same in every mode; what differs is what is published about the data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from opengradient_x402.errors import ConfigurationError


class SettlementMode(StrEnum):
    """What a gateway publishes about a call. The value is the wire form of `X-SETTLEMENT-TYPE`.

    The other names are aliases from earlier OpenGradient SDKs and tutorials; they compare equal and are
    the same members: `SettlementMode.SETTLE_BATCH is SettlementMode.BATCH`.
    """

    PRIVATE = "private"
    """Payment only: nothing about the data goes on chain."""
    BATCH = "batch"
    """A Merkle root over many calls (the gateways' default)."""
    INDIVIDUAL = "individual"
    """The full record of this one call."""

    SETTLE = "private"
    BATCH_HASHED = "batch"
    SETTLE_BATCH = "batch"
    INDIVIDUAL_FULL = "individual"
    SETTLE_METADATA = "individual"

    @classmethod
    def parse(cls, mode: object) -> SettlementMode:
        """Accept a member, any name or wire value in any spelling, or another SDK's enum member.

        Raises ConfigurationError: gateways silently turn an unknown mode into `batch`, which would publish
        more than was asked for.
        """
        if isinstance(mode, cls):
            return mode
        for candidate in (getattr(mode, "name", None), getattr(mode, "value", None), mode):
            if isinstance(candidate, str) and (found := _BY_NAME.get(_normalized(candidate))) is not None:
                return found
        raise ConfigurationError(
            f"Unknown settlement mode {mode!r}. Nothing was paid. "
            f"Use one of {', '.join(member.value for member in cls)} (or {', '.join(_ALIASES)})."
        )


def _normalized(name: str) -> str:
    return name.strip().rpartition(".")[2].upper().replace("-", "_").replace(" ", "_")


_BY_NAME: Final = dict(SettlementMode.__members__)
_ALIASES: Final = [name for name, member in _BY_NAME.items() if name != member.name]
