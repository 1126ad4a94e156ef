"""Answers an admitted call: model, price, proof, data settlement, collection; in one piece or as a stream.

The call comes from `gateway`, which has the routes; `payment.door` has admitted it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from opengradient_devnet.faults import Faults, ForgeProof, GarbleBody, OmitUsage, WrongTransaction
from opengradient_devnet.gateway import answers
from opengradient_devnet.gateway.event_stream import EventKind, EventStream, StreamEvent, spoiled
from opengradient_devnet.gateway.intake import HeaderList
from opengradient_devnet.gateway.payment.door import Admission
from opengradient_devnet.gateway.pricing import Cost, ModelPrice, PriceList
from opengradient_devnet.gateway.proofs.batches import DataSettler, IndividualRecord, SettlementType
from opengradient_devnet.gateway.proofs.forgery import forge
from opengradient_devnet.gateway.proofs.tee import Enclave, Proof, canonical_request
from opengradient_devnet.gateway.transcript import Transcript
from opengradient_devnet.model.protocol import Chunk, Delivery, Model, ModelError
from opengradient_devnet.model.usage import estimate_prompt

# The gateways' own default when a request names no limit.
DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One admitted, well-formed call."""

    request: dict[str, Any]
    price: ModelPrice
    admission: Admission
    settlement_type: SettlementType
    delivery: Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteAnswer:
    """A 200 that is not a stream."""

    body: bytes
    headers: HeaderList


class ModelService:
    """Answers calls with one model. `on_work` is called when a batch is full."""

    def __init__(
        self,
        *,
        model: Model,
        prices: PriceList,
        enclave: Enclave,
        data_settler: DataSettler,
        faults: Faults,
        quotes_costs: bool,
        on_work: Callable[[], None],
    ) -> None:
        self._model = model
        self._prices = prices
        self._enclave = enclave
        self._data_settler = data_settler
        self._faults = faults
        self._quotes_costs = quotes_costs
        self._on_work = on_work
        self._latest_proof: Proof | None = None

    async def ask(self, call: Call) -> Transcript:
        """The model's whole answer. Raises ModelError."""
        answer = await self._model.complete(call.request, delivery=call.delivery)
        return Transcript.of(answer, request=call.request)

    async def answer(self, call: Call, *, is_text: bool) -> CompleteAnswer:
        """Ask the model and collect the price. Raises ModelError and CollectionFailed."""
        transcript = await self.ask(call)
        cost = self.cost(call, transcript)
        proof = self._prove(call, transcript)
        headers: HeaderList = []
        if call.settlement_type is SettlementType.INDIVIDUAL and proof is not None:
            record = await self._settle_data(call, transcript, proof)
            headers = [*proof.headers().items(), *record.headers().items()]
        elif call.settlement_type is SettlementType.BATCH and proof is not None:
            self._batch(proof)
        headers += await call.admission.collect(cost.atomic)
        content = answers.completion(
            transcript,
            model=call.request["model"],
            created_s=int(time.time()),
            extra=self._members(transcript, proof, cost),
        )
        if is_text:
            content["completion"] = transcript.text
        body = answers.pretty(content)
        if self._faults.take(GarbleBody):
            body = body[: len(body) // 2]
        return CompleteAnswer(body=body, headers=headers)

    def _members(self, transcript: Transcript, proof: Proof | None, cost: Cost) -> dict[str, Any]:
        members: dict[str, Any] = {} if proof is None else proof.fields()
        if self._faults.take(OmitUsage) is None:
            members["usage"] = transcript.usage
        if self._quotes_costs:
            members["opengradient"] = cost.quote()
        return members

    # --- streams -------------------------------------------------------------------------------------------

    async def begin_stream(self, call: Call) -> EventStream:
        """Ask the model for a stream, and respond as soon as it has begun. Raises as `answer` does."""
        chunks = self._model.stream(call.request, delivery=call.delivery)
        transcript = Transcript(call.request)
        try:
            # An error before the first chunk can still be an HTTP error, and then it costs nothing.
            first = await anext(chunks, None)
            headers = await call.admission.begin_stream(self._worst_case(call).atomic)
        except BaseException:
            await chunks.aclose()
            raise

        async def end() -> None:
            call.admission.end_stream(self.cost(call, transcript).atomic)
            await chunks.aclose()

        events = self._events(call, transcript, first, chunks)
        return EventStream(spoiled(events, faults=self._faults), headers=headers, on_end=end)

    async def _events(
        self, call: Call, transcript: Transcript, chunk: Chunk | None, chunks: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[StreamEvent, None]:
        model = call.request["model"]
        try:
            while chunk is not None:
                transcript.add(chunk)
                if chunk.is_terminal:
                    break
                yield StreamEvent(kind=EventKind.DELTA, data=answers.delta_event(chunk, model=model))
                chunk = await anext(chunks, None)
            if transcript.finish_reason is None:
                raise ModelError(502, "The provider's stream ended before the answer did.", is_retryable=True)
        except ModelError as exc:
            failure = answers.provider_error_fields(exc)
            yield StreamEvent(kind=EventKind.ERROR, data=answers.event(failure))
            return
        final = await self._finale(call, transcript)
        # Charged before the client can see the end: whoever has the whole answer finds it in the accounts.
        call.admission.end_stream(self.cost(call, transcript).atomic)
        yield StreamEvent(kind=EventKind.FINAL, data=final)
        yield StreamEvent(kind=EventKind.DONE, data=answers.DONE)

    async def _finale(self, call: Call, transcript: Transcript) -> bytes:
        proof = self._prove(call, transcript)
        members = self._members(transcript, proof, self.cost(call, transcript))
        is_individual = call.settlement_type is SettlementType.INDIVIDUAL and proof is not None
        if is_individual and proof is not None:
            record = await self._settle_data(call, transcript, proof)
            members |= record.fields()
        elif call.settlement_type is SettlementType.BATCH and proof is not None:
            self._batch(proof)
        return answers.final_event(transcript, model=call.request["model"], extra=members, is_compact=is_individual)

    # --- price, proof, data settlement -----------------------------------------------------------------------

    def cost(self, call: Call, transcript: Transcript) -> Cost:
        """What the call costs by what has been said so far."""
        usage = transcript.usage
        return self._prices.cost(
            call.price,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )

    def _worst_case(self, call: Call) -> Cost:
        limit = call.request.get("max_completion_tokens") or call.request.get("max_tokens")
        return self._prices.cost(
            call.price,
            prompt_tokens=estimate_prompt(call.request).total,
            completion_tokens=min(limit or DEFAULT_MAX_TOKENS, call.price.max_output_tokens),
        )

    def _prove(self, call: Call, transcript: Transcript) -> Proof | None:
        proof = self._enclave.prove(
            call.request,
            text=transcript.text,
            tool_calls=transcript.tool_calls,
            finish_reason=transcript.finish_reason or "stop",
            timestamp_s=int(time.time()),
        )
        earlier, self._latest_proof = self._latest_proof, proof
        fault = self._faults.take(ForgeProof)
        return proof if fault is None else forge(proof, fault, enclave=self._enclave, earlier=earlier)

    def _batch(self, proof: Proof) -> None:
        if self._data_settler.add(proof):
            self._on_work()

    async def _settle_data(self, call: Call, transcript: Transcript, proof: Proof) -> IndividualRecord:
        content = {
            "request": canonical_request(call.request),
            "response": {"content": transcript.text, "tool_calls": transcript.tool_calls},
            "finish_reason": transcript.finish_reason,
            "usage": transcript.usage,
            **proof.fields(),
        }
        record = await to_thread.run_sync(
            lambda: self._data_settler.settle_individual(proof, payer=call.admission.payment.payer, record=content)
        )
        wrong = self._faults.take(WrongTransaction)
        return record if wrong is None else record.naming(wrong.transaction)
