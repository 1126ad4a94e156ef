"""The facilitator over HTTP: `/supported`, `/verify`, `/settle`, `/settle_data`.

JSON shapes are those of x402 v2 §7 (camelCase, absent when null). For a payment that fails a check the answer is a 200
with a reason code; for a request that holds no payment it is a 400.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from opengradient_devnet.bounded_json import JsonRefused, parse_json
from opengradient_devnet.facilitator.data_settlement import DataMalformed, anchor, parse_record
from opengradient_devnet.facilitator.facilitator import (
    DataSettlement,
    Facilitator,
    PaymentMalformed,
    Settlement,
    Verification,
)

MAX_BODY_BYTES = 256 * 1024
DATA_QUEUE = "x402-settle-data-queue"  # the name that OpenGradient's facilitator reports


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def verification_json(verification: Verification) -> dict[str, Any]:
    return _present(
        {
            "isValid": verification.is_valid,
            "invalidReason": verification.reason,
            "invalidMessage": verification.message,
            "payer": verification.payer,
            "extra": verification.extra,
        }
    )


def settlement_json(settlement: Settlement) -> dict[str, Any]:
    """x402 v2 `SettlementResponse`; the same object goes into a PAYMENT-RESPONSE header."""
    amount_atomic = settlement.amount_atomic
    return _present(
        {
            "success": settlement.success,
            "errorReason": settlement.reason,
            "errorMessage": settlement.message,
            "payer": settlement.payer,
            "transaction": settlement.transaction,
            "network": settlement.network,
            "amount": None if amount_atomic is None else str(amount_atomic),
            "extra": settlement.extra,
        }
    )


def data_settlement_json(settlement: DataSettlement) -> dict[str, Any]:
    """A finished job: this facilitator has no queue to wait in."""
    now = datetime.now(tz=UTC).isoformat().replace("+00:00", "Z")
    return _present(
        {
            "jobId": f"settlement-{uuid4()}",
            "queue": DATA_QUEUE,
            "status": "succeeded" if settlement.success else "failed",
            "createdAt": now,
            "updatedAt": now,
            "settlementType": settlement.settlement_type,
            # OpenGradient's middleware (og-x402) puts this one into X-Settlement-Tx-Hash.
            "txHash": settlement.transaction or None,
            "result": {"transactionHash": settlement.transaction} if settlement.transaction else None,
            "error": settlement.reason,
        }
    )


async def _read(request: Request) -> tuple[Any, Any]:
    """The payment and the requirements in a body; raises `PaymentMalformed`."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise PaymentMalformed(f"the body has more than {MAX_BODY_BYTES} bytes", reason="invalid_payload")
    try:
        parsed = parse_json(body)
    except JsonRefused as exc:
        raise PaymentMalformed(str(exc), reason="invalid_payload") from exc
    if not isinstance(parsed, dict):
        raise PaymentMalformed("the body must be a JSON object", reason="invalid_payload")
    return parsed.get("paymentPayload"), parsed.get("paymentRequirements")


def _refused(exc: PaymentMalformed, *, settling: Facilitator | None) -> JSONResponse:
    """A 400 that clients of either endpoint can read: the protocol's fields beside the error."""
    fields: dict[str, Any] = {"error": str(exc)}
    if settling is None:
        fields |= {"isValid": False, "invalidReason": exc.reason, "invalidMessage": str(exc)}
    else:
        fields |= {"success": False, "errorReason": exc.reason, "errorMessage": str(exc)}
        fields |= {"transaction": "", "network": settling.network}
    return JSONResponse(fields, status_code=400)


class _Endpoints:
    """One facilitator's endpoints. Chain work runs in threads."""

    def __init__(self, facilitator: Facilitator) -> None:
        self._facilitator = facilitator

    async def supported(self, _request: Request) -> JSONResponse:
        return JSONResponse(self._facilitator.supported())

    async def verify(self, request: Request) -> JSONResponse:
        try:
            verification = await run_in_threadpool(self._facilitator.verify, *await _read(request))
        except PaymentMalformed as exc:
            return _refused(exc, settling=None)
        return JSONResponse(verification_json(verification))

    async def settle(self, request: Request) -> JSONResponse:
        try:
            settlement = await run_in_threadpool(self._facilitator.settle, *await _read(request))
        except PaymentMalformed as exc:
            return _refused(exc, settling=self._facilitator)
        return JSONResponse(settlement_json(settlement))

    async def settle_data(self, request: Request) -> JSONResponse:
        headers = request.headers
        try:
            record = parse_record(headers.get("x-settlement-type"), headers.get("x-settlement-data"))
        except DataMalformed as exc:
            return JSONResponse({"error": str(exc)}, status_code=400)
        if record is None:
            answer = {"settlementJob": None, "notes": "A private call leaves nothing on chain."}
            return JSONResponse(answer, status_code=202)
        settlement = await run_in_threadpool(anchor, self._facilitator, record)
        return JSONResponse({"settlementJob": data_settlement_json(settlement)}, status_code=202)


def facilitator_app(facilitator: Facilitator) -> Starlette:
    """An app to be mounted at /facilitator, or anywhere."""
    endpoints = _Endpoints(facilitator)
    return Starlette(
        routes=[
            Route("/supported", endpoints.supported, methods=["GET"]),
            Route("/verify", endpoints.verify, methods=["POST"]),
            Route("/settle", endpoints.settle, methods=["POST"]),
            Route("/settle_data", endpoints.settle_data, methods=["POST"]),
        ]
    )
