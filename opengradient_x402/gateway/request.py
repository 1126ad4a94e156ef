"""From the model name that a user wrote to the one that a gateway understands, before anything is paid.

A name in the catalogue (`models`) is taken at once. Any other is looked up in the gateway's own list, once:
gateways answer an unknown model only after they were paid. Sans-I/O; does not know prices.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.effects import Steps
from opengradient_x402.errors import UnknownModel
from opengradient_x402.gateway.endpoints import Endpoint, EndpointSource, fetch, reach
from opengradient_x402.models import find_model, wire_name

_TIMEOUT_S = 10.0


class UnlistedModelWarning(UserWarning):
    """A model that neither the catalogue nor the gateway lists could not be checked before paying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The names that a gateway serves, and its price of one token of the asset (a claim), if it tells."""

    gateway: str = "The gateway"
    names: frozenset[str] = frozenset()
    opg_price_usd: Any = None


class ModelDirectory:
    """Names that the gateways of one source serve. Thread-safe: the worst race looks a name up twice."""

    def __init__(self, endpoints: EndpointSource) -> None:
        self._endpoints = endpoints
        self._known: dict[str, str] = {}

    def resolve(self, name: str) -> Steps[str]:
        """The wire name. May yield one request for the gateway's list, and wants its (read) response.

        Raises UnknownModel when the gateway lists its models and this is not one of them.
        """
        if (known := self._known.get(name)) is not None:
            return known
        if not name:
            raise UnknownModel("No model was named. Nothing was paid. Give one, for example 'openai/gpt-5'.")
        wire = wire_name(name)
        if find_model(name) is None:
            listing = yield from self.listing()
            listed = listing.names
            if not listed:
                warnings.warn(
                    f"{listing.gateway} does not list its models, so {name!r} could not be checked before paying.",
                    UnlistedModelWarning,
                    stacklevel=2,
                )
            # A gateway of one's own may have any provider's name before its models, and list them without.
            names = [candidate for candidate in (name, wire, name.rpartition("/")[2]) if candidate in listed]
            if names:
                wire = names[0]
            elif listed:
                raise UnknownModel(
                    f"{listing.gateway} does not serve a model {name!r}. Nothing was paid. It serves: "
                    f"{', '.join(sorted(listed))}."
                )
        self._known[name] = wire
        return wire

    def listing(self) -> Steps[Listing]:
        """What the gateway says about its models: one request. Empty when it says nothing."""
        try:
            return (yield from reach(self._endpoints, self._ask))
        except httpx.TransportError:
            return Listing()

    def _ask(self, endpoint: Endpoint) -> Steps[Listing]:
        request = endpoint.query("/v1/models", timeout_s=_TIMEOUT_S)
        response = yield from fetch(request, timeout_s=_TIMEOUT_S)
        return _listing(endpoint.base_url, response)


def _listing(gateway: str, response: httpx.Response) -> Listing:
    if response.status_code != httpx.codes.OK:
        return Listing(gateway=gateway)
    try:
        document = strict_json.loads(response.content)
        names = frozenset(str(entry["id"]) for entry in document["data"])
        return Listing(gateway=gateway, names=names, opg_price_usd=document.get("opg_price_usd"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Listing(gateway=gateway)
