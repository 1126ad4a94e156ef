"""One chat-completions call as steps, from the first attempt to its receipt: both gateway clients drive this.

It builds the HTTP request, sees a call through from its first attempt to its end, and reports the receipt
exactly once. Answers are read in `answer`, errors are made in `failures`. It does not know whether its
caller awaits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.completions import Completion, Delta, Usage, parse_usage, stop_sequences
from opengradient_x402.effects import Read, Sleep, Steps, Wait
from opengradient_x402.errors import ConfigurationError, LedgerUnavailable, OpenGradientError
from opengradient_x402.gateway.answer import AnswerReader
from opengradient_x402.gateway.connections import is_certificate_failure
from opengradient_x402.gateway.enclave_keys import Checked, ProofCheck
from opengradient_x402.gateway.endpoints import Endpoint, EndpointSource, reach
from opengradient_x402.gateway.failures import broken_line, unreachable, unreadable, withheld
from opengradient_x402.gateway.request import check_answer
from opengradient_x402.gateway.unread import LEAST_LIMIT_S
from opengradient_x402.http.time_limits import TimeLimits
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt, proof_id_of
from opengradient_x402.payment.call import (
    Answer,
    Call,
    build_receipt,
    checked_call_id,
    despite_signals,
    new_call_id,
    taken_claim,
)
from opengradient_x402.payment.handshake import pay
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.proofs.attestation import Verdict, VerifyTee, covered_only
from opengradient_x402.settlement_mode import SettlementMode
from opengradient_x402.telemetry.runs import name_of_run

CHAT_PATH = "/v1/chat/completions"
ReceiptListener = Callable[[SettlementReceipt], None]
_log = logging.getLogger(__name__)
_LONGEST_RECORD_S = 1.0
"""How long an answer waits for its receipt to be recorded, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What applies to every call of a client unless the call says otherwise."""

    time_limits: TimeLimits
    max_retries: int
    settlement_mode: SettlementMode
    is_blocking: bool
    query: Mapping[str, str | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def of_answers(self) -> httpx.Headers:
        """The headers of a request for an answer in one piece."""
        return self._headers("application/json")

    @cached_property
    def of_streams(self) -> httpx.Headers:
        """The headers of a request for a stream."""
        return self._headers("text/event-stream")

    def _headers(self, accept: str) -> httpx.Headers:
        named = {
            "content-type": "application/json",
            "accept": accept,
            "accept-encoding": "gzip, deflate",
            "authorization": "Bearer x402",  # required, and its value ignored (docs/wire.md, "Endpoints and headers")
            "x-settlement-type": self.settlement_mode.value,
            "user-agent": "opengradient-integrations",
        }
        return httpx.Headers({**named, **self.headers})


class Exchange:
    """A single logical call. Drive `chat`; or drive `open_stream`, then feed `take_chunk`, then `finish_stream`."""

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        wire_model: str,
        is_stream: bool,
        payments: Payments,
        endpoints: EndpointSource,
        options: Options,
        on_receipt: ReceiptListener | None = None,
        limits: tuple[RunLimit, ...] = (),
        id_group: str = "",
        run: str | None = None,
        call_id: str = "",
        earlier: Authorization | None = None,
        only_given_again: bool = False,
        proof_check: ProofCheck | None = None,
    ) -> None:
        self._payments = payments
        self._endpoints = endpoints
        self._proof_check = proof_check
        self._options = options
        self._on_receipt = on_receipt
        self._is_stream = is_stream
        self._is_held_back = proof_check is not None and proof_check.mode is VerifyTee.REQUIRE_BEFORE
        self._held: list[Delta] = []
        self._has_ended = False
        self.call = Call(
            id=checked_call_id(call_id) if call_id else new_call_id(id_group),
            is_keyed=bool(call_id),
            earlier=earlier,
            is_only_given_again=only_given_again,
            model=str(body.get("model") or wire_model),
            settlement_mode=options.settlement_mode.value,
            timeout_s=options.time_limits.call_s,
            is_blocking=options.is_blocking,
            limits=limits,
            run=name_of_run() or run,
        )
        self._body = body
        max_tokens = body.get("max_tokens")
        request = {**body, "model": wire_model, **({"stream": True} if is_stream else {})}
        try:
            self._content = strict_json.dumps(request)
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConfigurationError(
                f"The request cannot be written as JSON: {exc}. Nothing was sent or paid. "
                "Give the messages and parameters as plain JSON values, and text as valid Unicode.",
                kind="invalid_request",
            ) from exc
        if proof_check is not None:
            proof_check.take(request)
        self.call.prompt_bytes, self.call.max_tokens = len(self._content), max_tokens
        time_limits = options.time_limits
        self._timeouts = dict(time_limits.for_httpx)
        self._reader = AnswerReader(
            self.call,
            stop=stop_sequences(body.get("stop")),
            max_tokens=max_tokens,
            timeout_s=time_limits.between_chunks_s if is_stream else time_limits.call_s,
        )

    @property
    def receipt(self) -> SettlementReceipt | None:
        """The receipt; while the call goes on, what is known of its payment, with the outcome `unknown`.

        None for a call that nothing pays for.
        """
        if self.call.receipt is not None or self.call.authorization is None:
            return self.call.receipt
        so_far = build_receipt(
            self.call, outcome="unknown", error=None, answer=None, asset=self._payments.network.asset
        )
        return so_far.followed_by(self._payments.reconciler)

    # -- the whole call, as steps for a driver

    def chat(self) -> Steps[Completion]:
        """One whole answer; ends the call."""
        try:
            response = yield from self._opening()
            yield Read(response, self._reader.take_body)
            completion = self._ended_well(self._reader.completion(response))
        except BaseException as exc:  # noqa: BLE001  (every error ends the call)
            problem = self.fail(exc)
            raise problem from problem.__cause__
        yield from self.recorded()
        return completion

    def recorded(self) -> Steps[None]:
        """Until the receipt is in the ledger, so that no answer comes before it. Not for long: a ledger may hang."""
        if (recorded := self.call.recorded) is not None and not recorded.done():
            with suppress(TimeoutError, LedgerUnavailable):
                yield Wait(recorded, _LONGEST_RECORD_S)
        self._check_first_use()

    def open_stream(self) -> Steps[httpx.Response]:
        """The open response of a stream; the call goes on in `take_chunk` and `finish_stream`."""
        try:
            response = yield from self._opening()
            if response.is_error:
                yield Read(response, self._reader.take_body)
                raise self._reader.refusal(response)
            # The transport reads the limit again for each piece of the body.
            self._timeouts["read"] = self._options.time_limits.between_chunks_s
            return response
        except BaseException as exc:  # noqa: BLE001  (every error ends the call)
            problem = self.fail(exc)
            raise problem from problem.__cause__

    def _opening(self) -> Steps[httpx.Response]:
        """Only failures before any byte left are tried again."""
        deadline = time.monotonic() + self._options.time_limits.call_s
        for attempt in range(self._options.max_retries + 1):
            try:
                return (yield from reach(self._endpoints, self._ask, until=deadline))
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
                if attempt == self._options.max_retries or is_certificate_failure(exc):
                    raise unreachable(self.call, exc) from exc
            except httpx.TransportError as exc:
                if self.call.authorization is not None:
                    raise
                raise unreachable(self.call, exc) from exc
            yield Sleep(min(0.25 * 2**attempt, 4.0))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, endpoint: Endpoint) -> Steps[httpx.Response]:
        self.call.base_url, self.call.payees = endpoint.base_url, endpoint.payees
        if self._proof_check is not None:
            self._proof_check.trust(endpoint)
        response = yield from pay(self._request(endpoint), call=self.call, payments=self._payments)
        yield from self._reader.check_encoding(response)
        return response

    def _request(self, endpoint: Endpoint) -> httpx.Request:
        request = endpoint.post(
            CHAT_PATH,
            params=self._options.query or None,
            headers=self._options.of_streams if self._is_stream else self._options.of_answers,
            content=self._content,
            extensions={"timeout": self._timeouts},
        )
        if name := self._payments.network.call_id_header:
            request.headers[name] = self.call.id
        return request

    # -- reading a stream

    @property
    def unread_limit_s(self) -> float:
        """How long a stream may stay unread before it is closed, in seconds."""
        return max(self._options.time_limits.call_s, LEAST_LIMIT_S)

    @property
    def is_done(self) -> bool:
        """Whether nothing more of a stream is to be read."""
        return self._reader.is_done

    def take_chunk(self, chunk: bytes) -> list[Delta]:
        """What this piece of a stream adds, empty deltas left out; nothing while the stream is held back."""
        deltas = self._reader.take_chunk(chunk)
        if not self._is_held_back:
            return deltas
        self._held += deltas
        return []

    def released(self) -> list[Delta]:
        """What was held back of a stream until it was proven: its covered parts."""
        held, self._held = self._held, []
        is_of_calls = any(delta.tool_calls for delta in held)
        for delta in held:
            delta.reasoning = delta.refusal = ""
            delta.content = "" if is_of_calls else delta.content
        return [delta for delta in held if delta.finish_reason is not None or not delta.is_empty]

    @property
    def has_all_content(self) -> bool:
        """Whether a stream has no more content: the rest is read to the end, and the connection is not cut."""
        return self._reader.has_all_content

    def take_rest(self, chunk: bytes) -> bool:
        """Takes what follows the content of a stream, and returns whether more of it is to be read."""
        return self._reader.take_rest(chunk)

    def close_stream(self, *, was_shown_whole: bool) -> Completion | None:
        """Ends the call of a stream that its reader closed; returns the answer if the reader has seen all of it.

        An answer whose proof fails is recorded as such, and nothing is raised: nobody waits for it any more.
        """
        completion = None
        try:
            if was_shown_whole and self.is_done and self.call.receipt is None:
                with suppress(OpenGradientError):
                    completion = self.finish_stream()
        finally:
            self.end("abandoned")
        return completion

    def finish_stream(self) -> Completion:
        """The whole answer of a stream whose bytes have ended; ends the call."""
        return self._ended_well(self._reader.stream_completion())

    # -- ending

    def _ended_well(self, completion: Completion) -> Completion:
        checked = None if self._proof_check is None else self._checked(self._proof_check, completion)
        if checked is not None and checked.verdict is not Verdict.VERIFIED:
            self._unproven(completion, checked)
        if self._is_held_back:
            completion = covered_only(completion)
        self.end("ok", answer=self._answer(completion.raw, completion.usage, checked))
        check_answer(self._body, completion)
        return completion.paid_by(self.call.receipt)

    def _checked(self, proof_check: ProofCheck, completion: Completion) -> Checked:
        checked = proof_check.check(completion)
        proof_id = proof_id_of(completion.raw.get("tee_signature"))
        if proof_id is not None and self._payments.ledger.first_call_of(proof_id, self.call.id) != self.call.id:
            checked = replace(checked, verdict=Verdict.REPLAYED, uncovered=())
        return checked

    def _check_first_use(self) -> None:
        """Asks the ledger whether the same proof came with another call before, perhaps in another process.

        Raises ProofRejected where proofs are required; the receipt in the ledger says why.
        """
        recorded, receipt, check = self.call.recorded, self.call.receipt, self._proof_check
        if check is None or receipt is None or recorded is None or not recorded.done() or recorded.exception():
            return
        if recorded.result() in (None, self.call.id) or not (receipt.tee_verified or "").startswith("verified"):
            return
        replayed = Checked(verdict=Verdict.REPLAYED, key_source=check.key_source)
        receipt = replace(receipt, tee_verified=str(replayed), tee_uncovered=None)
        if check.mode.is_required:
            receipt = replace(receipt, outcome="failed", error="ProofRejected")
        self.call.receipt = receipt.followed_by(self._payments.reconciler)
        self._payments.ledger.record_call(receipt, at_once=False)
        if check.mode.is_required:
            raise self.fail(withheld(self.call, Verdict.REPLAYED))
        _log.warning("Call %s: %s. The answer was passed on.", self.call.id, Verdict.REPLAYED.sentence)

    def _unproven(self, completion: Completion, checked: Checked) -> None:
        """Withholds the answer when proofs are required, and says so in the log otherwise."""
        if self._proof_check is not None and self._proof_check.mode.is_required:
            self.end("failed", error="ProofRejected", answer=self._answer(completion.raw, completion.usage, checked))
            raise withheld(self.call, checked.verdict)
        _log.warning("Call %s: %s. The answer was passed on.", self.call.id, checked.verdict.sentence)

    def _answer(self, raw: Mapping[str, Any], usage: Usage | None, checked: Checked | None = None) -> Answer:
        return Answer(
            model=self.call.model,
            usage=usage,
            raw=raw,
            tee_verified=None if checked is None else str(checked),
            tee_uncovered=None if checked is None else ", ".join(checked.uncovered) or None,
        )

    def end(self, outcome: str, *, error: str | None = None, answer: Answer | None = None) -> None:
        """Ends the call, once: the receipt is recorded, and reported to the listener.

        Also when a signal's exception (a time limit of a job, Ctrl-C) comes in between: it is raised afterwards.
        """
        if not self._has_ended:
            despite_signals(partial(self._end, outcome, error, answer))

    def _end(self, outcome: str, error: str | None, answer: Answer | None) -> None:
        # Two threads may end one stream: the first one reports it.
        if self._has_ended or not self.call.ending.acquire(blocking=False):
            return
        if answer is None:
            raw = self._reader.raw
            answer = self._answer(raw, parse_usage(raw.get("usage")))
        self._payments.finish(self.call, outcome=outcome, error=error, answer=answer)
        receipt = self.call.receipt
        for limit in self.call.limits if receipt is not None or self.call.authorization is None else ():
            limit.ended(self.call.id, receipt, taken_atomic=taken_claim(self.call))
        if receipt is not None and self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except Exception:  # noqa: BLE001  the listener's boundary: money has moved, its fault must not hide the answer
                _log.exception("A receipt listener failed for call %s", self.call.id)
        self._has_ended = True

    def fail(self, exc: BaseException) -> BaseException:
        """Ends the call because of `exc`, and gives back the error to raise: with the receipt, if there is one."""
        problem = exc
        if isinstance(exc, httpx.TransportError):
            problem = broken_line(self.call, exc, shown_chars=self._reader.shown_chars)
        elif isinstance(exc, httpx.DecodingError):
            problem = unreadable(self.call, exc)
        if problem is not exc:
            problem.__cause__ = exc
        self.end("failed" if isinstance(problem, Exception) else "abandoned", error=type(problem).__name__)
        if isinstance(problem, OpenGradientError):
            problem.call_id = problem.call_id or self.call.id
            problem.receipt = problem.receipt or self.call.receipt
            self._payments.refused(self.call, problem)
        return problem
