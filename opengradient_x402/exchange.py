"""One chat-completions request and its response, without I/O: both gateway clients drive this.

It builds the HTTP request, reads what comes back into a `Completion` or `Delta`s, turns every failure into
the error that says what happened to the money, and reports the receipt exactly once. It does not know
whether its caller awaits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx

from opengradient_x402 import wire_json
from opengradient_x402.attestation import Verdict, VerifyTee
from opengradient_x402.call_receipts import Answer, build_receipt
from opengradient_x402.calls import EXTENSION, Call
from opengradient_x402.completions import (
    Completion,
    Delta,
    ErrorEvent,
    StreamAccumulator,
    Truncated,
    parse_completion,
    parse_usage,
)
from opengradient_x402.enclave_keys import Checked, ProofCheck
from opengradient_x402.endpoints import Endpoint, EndpointSource, reach
from opengradient_x402.errors import (
    GatewayError,
    GatewayUnreachable,
    InsecureEndpoint,
    NotPaid,
    OpenGradientError,
    ProofRejected,
    ResponseInvalid,
    StreamInterrupted,
)
from opengradient_x402.gateway_errors import describe_error, kind_of
from opengradient_x402.payments import Payments
from opengradient_x402.receipts import SettlementReceipt
from opengradient_x402.settlement import SettlementMode
from opengradient_x402.sse import DONE, EventDecoder, EventTooLarge
from opengradient_x402.steps import Ask, Collect, Pause, Steps
from opengradient_x402.stop_sequences import stop_sequences
from opengradient_x402.tls import is_certificate_failure

CHAT_PATH = "/v1/chat/completions"
DEFAULT_MAX_TOKENS = 4096
"""What gateways take an omitted `max_tokens` for (wire facts, "What the gateway does not do")."""
MAX_BODY_BYTES = 256 * 1024 * 1024
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""Packed once, as asked for. Two layers, or zstd, could turn one read of a few kilobytes into gigabytes."""

ReceiptListener = Callable[[SettlementReceipt], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What applies to every call of a client unless the call says otherwise."""

    timeout_s: float
    max_retries: int
    settlement_mode: SettlementMode


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
        headers: Mapping[str, str] | None = None,
        on_receipt: ReceiptListener | None = None,
        proof_check: ProofCheck | None = None,
    ) -> None:
        self._payments = payments
        self._endpoints = endpoints
        self._base_url = ""
        self._proof_check = proof_check
        self._options = options
        self._on_receipt = on_receipt
        self._is_stream = is_stream
        self.call = Call(
            model=str(body.get("model") or wire_model),
            settlement_mode=options.settlement_mode.value,
            timeout_s=options.timeout_s,
            is_managed=True,
        )
        self._stop = stop_sequences(body.get("stop"))
        self._max_tokens = body.get("max_tokens") or body.get("max_completion_tokens")
        request = {**body, "model": wire_model, **({"stream": True} if is_stream else {})}
        if proof_check is not None:
            proof_check.request = request
        self._content = wire_json.dumps(request)
        self.call.prompt_bytes, self.call.max_tokens = len(self._content), self._max_tokens
        self._headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if is_stream else "application/json",
            "accept-encoding": "gzip, deflate",
            "authorization": "Bearer x402",  # gateways demand a token and ignore its value (wire facts, "HTTP")
            "x-settlement-type": options.settlement_mode.value,
            "user-agent": "opengradient-integrations",
            **(headers or {}),
        }
        self._deadline = 0.0
        self._silent_since: float | None = None
        self._received = 0
        self._body: list[bytes] = []
        self._decoder = EventDecoder()
        self._accumulator = StreamAccumulator(stop=self._stop, max_tokens=self._max_tokens, model=self.call.model)
        self._is_done = False
        self._broken_by: OpenGradientError | None = None

    @property
    def receipt(self) -> SettlementReceipt | None:
        """The receipt; while the call goes on, what is known of its payment, with the outcome `unknown`.

        None for a call that nothing pays for.
        """
        if self.call.receipt is not None or self.call.entry is None:
            return self.call.receipt
        so_far = build_receipt(self.call, outcome="unknown", error=None, answer=None)
        return so_far.followed_by(self._payments.reconciler)

    # -- the whole call, as steps for a driver

    def chat(self) -> Steps[Completion]:
        """One whole answer; ends the call."""
        try:
            response = yield from self._opening()
            yield Collect(response, self._take_body)
            return self._completion(response)
        except BaseException as exc:  # noqa: BLE001  (ends the call, whatever ended it)
            problem = self.fail(exc)
            raise problem from problem.__cause__

    def open_stream(self) -> Steps[httpx.Response]:
        """The open response of a stream; the call goes on in `take_chunk` and `finish_stream`."""
        try:
            response = yield from self._opening()
            if response.is_error:
                yield Collect(response, self._take_body)
                raise self._refusal(response)
            return response
        except BaseException as exc:  # noqa: BLE001  (ends the call, whatever ended it)
            problem = self.fail(exc)
            raise problem from problem.__cause__

    def _opening(self) -> Steps[httpx.Response]:
        """Only failures before any byte left are tried again."""
        self._deadline = time.monotonic() + self._options.timeout_s
        for attempt in range(self._options.max_retries + 1):
            try:
                return (yield from reach(self._endpoints, self._ask, until=self._deadline))
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
                if attempt == self._options.max_retries or is_certificate_failure(exc):
                    raise self._unreachable(exc) from exc
            except httpx.TransportError as exc:
                if self.call.entry is not None:
                    raise
                raise self._unreachable(exc) from exc
            yield Pause(min(0.25 * 2**attempt, 4.0))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, endpoint: Endpoint) -> Steps[httpx.Response]:
        self._base_url = endpoint.base_url
        if self._proof_check is not None:
            self._proof_check.trust(endpoint)
        response: httpx.Response = yield Ask(self._request(endpoint))
        yield from self._check_encoding(response)
        return response

    def _request(self, endpoint: Endpoint) -> httpx.Request:
        timeout = self._options.timeout_s
        return endpoint.request(
            "POST",
            CHAT_PATH,
            headers=self._headers,
            content=self._content,
            extensions={
                EXTENSION: self.call,
                "timeout": {"connect": min(timeout, 10.0), "read": timeout, "write": timeout, "pool": timeout},
            },
        )

    def _unreachable(self, exc: httpx.TransportError) -> NotPaid:
        if is_certificate_failure(exc):
            return InsecureEndpoint(
                f"{self._base_url} showed a TLS certificate that is not trusted for it ({exc}). Nothing was sent, "
                "signed or paid. Somebody else may be answering there; a new certificate must be registered first.",
                call_id=self.call.id,
            )
        is_timeout = isinstance(exc, httpx.TimeoutException)
        detail = str(exc) or type(exc).__name__
        return GatewayUnreachable(
            f"No answer from {self._base_url} ({detail}). Nothing was signed for this call and nothing was paid. "
            "Check the address (`base_url`, OG_GATEWAY_URL) and your connection, then call again.",
            call_id=self.call.id,
            kind="timeout" if is_timeout else "connection",
        )

    # -- reading

    def _check_encoding(self, response: httpx.Response) -> Steps[None]:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding in _ENCODINGS:
            return
        problem = self._unreadable(ValueError(f"it is encoded as {encoding[:40]!r}, which was not asked for"))
        del response.headers["content-encoding"]  # reading its first byte would unpack it

        def refuse(_: bytes) -> None:
            raise problem

        yield Collect(response, refuse)
        raise problem

    def _take_body(self, chunk: bytes) -> None:
        """Collects a piece of a non-streamed (or failed) response."""
        self._received += len(chunk)
        if self._received > MAX_BODY_BYTES:
            raise self._unreadable(ValueError(f"it is larger than {MAX_BODY_BYTES} bytes and was not read further"))
        if time.monotonic() > self._deadline:
            raise self.interrupted(
                f"it was not complete after {self._options.timeout_s:g} s; raise `timeout` for long answers, or stream",
                kind_timeout=True,
            )
        self._body.append(chunk)

    def _completion(self, response: httpx.Response) -> Completion:
        """The answer in the collected body; ends the call. Raises GatewayError, ResponseInvalid."""
        body = self._parsed(response)
        if response.is_error:
            raise self._error_of(response.status_code, body)
        try:
            completion = parse_completion(body, stop=self._stop, max_tokens=self._max_tokens)
        except ErrorEvent as exc:
            raise self._error_of(None, exc.error) from exc
        except (Truncated, TypeError, AttributeError, KeyError, ValueError) as exc:
            raise self._unreadable(exc) from exc
        return self._ended_well(completion)

    def _refusal(self, response: httpx.Response) -> OpenGradientError:
        """The error for a response that has an error status."""
        try:
            body = self._parsed(response)
        except (ResponseInvalid, NotPaid):
            body = {"error": b"".join(self._body)[:500].decode("utf-8", "replace")}
        return self._error_of(response.status_code, body)

    def take_chunk(self, chunk: bytes) -> list[Delta]:
        """What this piece of a stream adds, empty deltas left out. Raises GatewayError, ResponseInvalid."""
        try:
            payloads = self._decoder.feed(chunk)
        except EventTooLarge as exc:
            raise self._unreadable(exc) from exc
        if payloads:
            self._silent_since = None
        else:
            self._check_progress()
        return self._take_events(payloads)

    def _check_progress(self) -> None:
        """Bytes arrive, but no event: comments, or one event in drips. The time limit ends that too."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self._options.timeout_s:
            raise self.interrupted(f"no event arrived for {self._options.timeout_s:g} s", kind_timeout=True)

    def _take_events(self, payloads: list[bytes]) -> list[Delta]:
        deltas: list[Delta] = []
        for payload in payloads:
            if payload == DONE:
                self._is_done = True
                break
            try:
                delta = self._accumulator.feed(wire_json.loads(payload))
            except ErrorEvent as exc:
                self._broken_by = self._error_of(None, exc.error)
                self._broken_by.__cause__ = exc
                break
            except (TypeError, AttributeError, KeyError, ValueError) as exc:
                self._broken_by = self._unreadable(exc)
                self._broken_by.__cause__ = exc
                break
            if delta.finish_reason is not None or not delta.is_empty:
                deltas.append(delta)
        return deltas

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be read: the end marker arrived, or the stream broke."""
        return self._is_done or self._broken_by is not None

    def finish_stream(self) -> Completion:
        """The whole answer of a stream whose bytes have ended; ends the call. Raises StreamInterrupted."""
        if not self.is_done:
            self._take_events(self._decoder.flush())
        if self._broken_by is not None:
            raise self._broken_by
        if not self._is_done:
            raise self.interrupted("it ended without its end marker")
        try:
            completion = self._accumulator.finish()
        except Truncated as exc:
            raise self.interrupted("it held no content") from exc
        except (TypeError, AttributeError, ValueError) as exc:
            raise self._unreadable(exc) from exc
        return self._ended_well(completion)

    # -- ending

    def _ended_well(self, completion: Completion) -> Completion:
        checked = None if self._proof_check is None else self._proof_check.check(completion)
        if checked is not None and checked.verdict is not Verdict.VERIFIED:
            self._unproven(completion, checked)
        self.end("ok", answer=self._answer(completion.raw, checked))
        return replace(completion, receipt=self.call.receipt, model=completion.model or self.call.model)

    def _unproven(self, completion: Completion, checked: Checked) -> None:
        """Withholds the answer when proofs are required, and says so in the log otherwise."""
        if self._proof_check is not None and self._proof_check.mode is VerifyTee.REQUIRE:
            self.end("failed", error="ProofRejected", answer=self._answer(completion.raw, checked))
            raise ProofRejected(
                f"The answer to call {self.call.id} is withheld: {checked.verdict.sentence}. The call was served and "
                "will be charged; the receipt says how much, and is evidence against the gateway. Use another "
                'gateway, or `verify_tee="warn"` to see such answers.',
                call_id=self.call.id,
            )
        _log.warning("Call %s: %s. The answer was passed on.", self.call.id, checked.verdict.sentence)

    def _answer(self, raw: Mapping[str, Any], checked: Checked | None = None) -> Answer:
        return Answer(
            model=self.call.model,
            usage=parse_usage(raw.get("usage")),
            raw=raw,
            tee_verified=None if checked is None else str(checked),
        )

    def end(self, outcome: str, *, error: str | None = None, answer: Answer | None = None) -> None:
        """Ends the call, once: the receipt is recorded, and reported to who listens."""
        if self.call.receipt is not None:
            return
        if answer is None:
            answer = self._answer(self._accumulator.raw)
        # None for whoever comes second: two threads may end one stream, and it is reported once.
        receipt = self._payments.finish(self.call, outcome=outcome, error=error, answer=answer)
        if receipt is not None and self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except Exception:  # noqa: BLE001  the listener's boundary: money has moved, its fault must not hide the answer
                _log.exception("A receipt listener failed for call %s", self.call.id)

    def fail(self, exc: BaseException) -> BaseException:
        """Ends the call because of `exc`, and gives back the error to raise: with the receipt, if there is one."""
        if isinstance(exc, httpx.TransportError):
            problem: BaseException = self.interrupted(_cause(exc), kind_timeout=isinstance(exc, httpx.TimeoutException))
            problem.__cause__ = exc
        elif isinstance(exc, httpx.DecodingError):
            problem = self._unreadable(exc)
            problem.__cause__ = exc
        else:
            problem = exc
        is_error = isinstance(problem, Exception)
        self.end("failed" if is_error else "abandoned", error=type(problem).__name__)
        if isinstance(problem, OpenGradientError):
            problem.call_id = problem.call_id or self.call.id
            problem.receipt = problem.receipt or self.call.receipt
        return problem

    def interrupted(self, what: str, *, kind_timeout: bool = False) -> OpenGradientError:
        """The error for an answer that stopped before its end."""
        shown = len(self._accumulator.text)
        if self.call.entry is None:
            return NotPaid(
                f"The answer to call {self.call.id} is incomplete: {what} (after {shown} characters). The gateway "
                "did not ask for a payment, and nothing was paid.",
                call_id=self.call.id,
                kind="timeout" if kind_timeout else "connection",
            )
        return StreamInterrupted(
            f"The answer to call {self.call.id} is incomplete: {what} (after {shown} characters). What was served "
            "is charged; see the receipt. It is not sent again: call again if the rest is worth a new payment.",
            call_id=self.call.id,
            kind="timeout" if kind_timeout else "connection",
        )

    def _parsed(self, response: httpx.Response) -> dict[str, Any]:
        content = b"".join(self._body)
        try:
            body = wire_json.loads(content)
        except ValueError as exc:
            if response.is_error:
                return {"error": content[:500].decode("utf-8", "replace")}
            raise self._unreadable(exc) from exc
        if not isinstance(body, dict):
            raise self._unreadable(TypeError(f"a {type(body).__name__} instead of an object"))
        return cast("dict[str, Any]", body)

    def _unreadable(self, exc: Exception) -> OpenGradientError:
        if self.call.entry is None:
            return NotPaid(
                f"What answers at {self._base_url} did not ask for a payment, and its answer is not a chat "
                f"completion ({exc}). Nothing was paid. Check the address, and that no proxy or login page answers.",
                call_id=self.call.id,
                kind="provider",
            )
        return ResponseInvalid(
            f"The gateway's answer to call {self.call.id} is not a chat completion ({exc}). The call may be charged; "
            "see its receipt. If it happens again, tell the gateway's operator the call id.",
            call_id=self.call.id,
        )

    def _error_of(self, status: int | None, body: Mapping[str, Any]) -> OpenGradientError:
        said = describe_error(body)
        kind = kind_of(status, said, body)
        shown = f" (HTTP {status})" if status is not None else ""
        if self.call.entry is None:
            return NotPaid(
                f"The gateway refused call {self.call.id}{shown}: {said}. Nothing was paid.",
                call_id=self.call.id,
                status_code=status,
                kind=kind,
            )
        return GatewayError(
            f"The gateway failed call {self.call.id}{shown}: {said}. The payment had been accepted; what is charged "
            "for the failure, if anything, is on the receipt once it settles. It was not tried again.",
            call_id=self.call.id,
            status_code=status,
            kind=kind,
        )


def _cause(exc: httpx.TransportError) -> str:
    if isinstance(exc, httpx.TimeoutException):
        return "nothing arrived within the time limit"
    return f"the connection broke ({str(exc) or type(exc).__name__})"
