"""An embedded OpenGradient-like network for development and tests: chain, facilitator, paid gateway, model.

    with Devnet() as net:
        wallet = net.account(opg="10", approved=True)
        …  # net.gateway_url, net.rpc_url, net.network

Importing the package is cheap; the parts are loaded when they are first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opengradient_devnet.chain.accounts import Account
    from opengradient_devnet.devnet import Devnet
    from opengradient_devnet.faults import Faults
    from opengradient_devnet.gateway.payment.challenge import Scheme
    from opengradient_devnet.gateway.payment.sessions import SettlementRecord
    from opengradient_devnet.gateway.proofs.tee import CanonicalStyle

__all__ = ["Account", "CanonicalStyle", "Devnet", "Faults", "Scheme", "SettlementRecord"]

_HOMES = {
    "Account": "chain.accounts",
    "CanonicalStyle": "gateway.proofs.tee",
    "Devnet": "devnet",
    "Faults": "faults",
    "Scheme": "gateway.payment.challenge",
    "SettlementRecord": "gateway.payment.sessions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as exc:
        if (exc.name or __name__).startswith(__name__):
            raise
        raise ModuleNotFoundError(
            f"{name} needs the package {exc.name!r}, which is not installed. "
            "Install the devnet: pip install 'opengradient-integrations[devnet]'",
            name=exc.name,
        ) from exc


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
