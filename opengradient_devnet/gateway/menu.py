"""The models that a gateway offers: those of its price list, and those that its upstream lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opengradient_devnet.gateway.pricing import ModelPrice, PriceList
from opengradient_devnet.model.protocol import ListsModels, Model, ModelError

_UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """`is_own` says that the price list was made for this upstream: then all of it is on offer.

    The built-in list names models that a local server has never heard of; of it only what the server has is shown.
    """

    model: Model
    prices: PriceList
    is_own: bool

    async def models(self) -> list[ModelPrice]:
        """Every model that can be bought, under the name to ask for. Nothing is offered without a price.

        Of an upstream that sells anything and cannot say what it has, nothing is listed: no list is no refusal.
        """
        listed = list(self.prices.models.values())
        names = await self._names()
        if not names:
            return listed if self.is_own or self.prices.anything_else is None else []
        offered = {price.name: price for price in listed if self.is_own}
        for name in names:
            price = self.prices.find(name)
            if price is not None and price.name not in offered:
                sold = replace(price, name=name, provider=_UPSTREAM) if price is self.prices.anything_else else price
                offered[sold.name] = sold
        return list(offered.values())

    async def _names(self) -> list[str]:
        if not isinstance(self.model, ListsModels):
            return []
        try:
            return await self.model.names()
        except ModelError:
            return []  # a server that is down, or has no such list; calls will tell
