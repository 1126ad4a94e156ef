"""The devnet's side doors: accounts, faucet, blobs, the network description, control of faults."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from eth_utils.address import is_address
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opengradient_devnet.bounded_json import parse_json
from opengradient_devnet.chain.accounts import WalletRefused, Wallets
from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.faults import FAULT_KINDS, Faults, FaultUnknown, parse_fault
from opengradient_devnet.gateway.proofs.batches import BlobStore

DEFAULT_OPG = "10"
FAULT_TOKEN_HEADER = "X-Fault-Token"  # noqa: S105 - a header's name


class PublicRoutes:
    """Routes around the gateway. Faults and reorganisations need `fault_token`, and do not exist without one."""

    def __init__(
        self,
        *,
        chain: Chain,
        wallets: Wallets,
        blobs: BlobStore,
        network: Mapping[str, Any],
        faults: Faults,
        fault_token: str | None,
    ) -> None:
        self._chain = chain
        self._wallets = wallets
        self._blobs = blobs
        self._network = network
        self._faults = faults
        self._fault_token = fault_token

    def routes(self) -> list[Route]:
        """What to mount at the root of the devnet's origin."""
        control = [
            Route("/faults", self._with_token(self._control_faults), methods=["GET", "POST", "DELETE"]),
            Route("/reorganise", self._with_token(self._reorganise), methods=["POST"]),
        ]
        return [
            Route("/network", self._describe, methods=["GET"]),
            Route("/accounts", self._make_account, methods=["POST"]),
            Route("/faucet", self._fund, methods=["POST"]),
            Route("/blobs/{blob_id}", self._blob, methods=["GET"]),
            *(control if self._fault_token is not None else []),
        ]

    def _with_token(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            shown = request.headers.get(FAULT_TOKEN_HEADER, "")
            if not secrets.compare_digest(shown.encode(), (self._fault_token or "").encode()):
                return _refuse(
                    403,
                    f"This needs the header {FAULT_TOKEN_HEADER} with the token that the devnet printed at its start "
                    "(in Python: devnet.fault_token). Nothing was changed.",
                )
            return await route(request)

        return checked

    async def _describe(self, _request: Request) -> Response:
        return JSONResponse(self._network)

    async def _make_account(self, request: Request) -> Response:
        try:
            wish = await _json_object(request)
            account = await run_in_threadpool(
                self._wallets.make,
                opg=wish.get("opg", DEFAULT_OPG),
                approved=wish.get("approved") is True,
            )
        except (TypeError, ValueError) as exc:
            return _refuse(400, str(exc))
        return JSONResponse({"address": account.address, "private_key": account.private_key})

    async def _fund(self, request: Request) -> Response:
        try:
            wish = await _json_object(request)
            address = wish.get("address")
            if not isinstance(address, str) or not is_address(address):
                return _refuse(400, f"{address!r} is not an address.")
            await run_in_threadpool(self._wallets.fund, address, opg=wish.get("opg", DEFAULT_OPG))
        except WalletRefused as exc:
            return _refuse(403, str(exc))
        except (TypeError, ValueError) as exc:
            return _refuse(400, str(exc))
        return JSONResponse({"address": address, "opg_atomic": str(self._chain.token_balance(address))})

    async def _blob(self, request: Request) -> Response:
        data = self._blobs.get(request.path_params["blob_id"])
        if data is None:
            return _refuse(404, "There is no such blob.")
        return Response(data, media_type="application/json")

    async def _control_faults(self, request: Request) -> Response:
        if request.method == "GET":
            struck = [dataclasses.asdict(fault) | {"fault": type(fault).__name__} for fault in self._faults.struck]
            return JSONResponse({"kinds": sorted(FAULT_KINDS), "struck": struck})
        if request.method == "DELETE":
            self._faults.clear()
            return JSONResponse({})
        try:
            wish = await _json_object(request)
            fault = parse_fault(str(wish.get("fault")), wish.get("members") or {})
            self._faults.inject(fault, times=wish.get("times", 1), skip=wish.get("skip", 0))
        except (FaultUnknown, TypeError, ValueError) as exc:
            return _refuse(400, str(exc))
        return JSONResponse({})

    async def _reorganise(self, request: Request) -> Response:
        """`{"depth": 3, "lose": "all" | [hashes]}` -> `{"lost": [hashes]}`."""
        try:
            wish = await _json_object(request)
            depth, lose = wish.get("depth"), wish.get("lose", [])
            if isinstance(depth, bool) or not isinstance(depth, int) or not (lose == "all" or isinstance(lose, list)):
                return _refuse(400, 'Say how many blocks: {"depth": 3}, and what to lose: "all", or a list of hashes.')
            lost = await run_in_threadpool(
                self._chain.reorganise, depth, lose="all" if lose == "all" else [*map(str, lose)]
            )
        except (TypeError, ValueError) as exc:
            return _refuse(400, str(exc))
        return JSONResponse({"lost": lost})


async def _json_object(request: Request) -> dict[str, Any]:
    body = await request.body()
    content = parse_json(body) if body else {}
    if not isinstance(content, dict):
        raise TypeError("The body must be a JSON object.")
    return content


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
