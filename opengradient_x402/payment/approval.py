"""A person's approval of a payment: what is asked, how it is asked, and the error for a refusal.

Whether a person is asked, and when, is decided by `policy` and `steps`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from opengradient_x402.effects import in_thread
from opengradient_x402.errors import PaymentNotApproved


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """A payment that waits for a person's answer.

    `amount` is the most that the signature allows, in whole tokens of `symbol`; `amount_atomic` is the same in atomic
    units. An `upto` payment may serve further calls of its session, up to that amount.
    """

    call_id: str
    endpoint: str
    """The gateway's URL."""
    payee: str
    payer: str
    network: str
    scheme: str
    amount_atomic: int
    amount: str
    symbol: str
    model: str

    def to_json(self) -> dict[str, Any]:
        """The request as plain JSON; amounts in atomic units as text."""
        return {**asdict(self), "amount_atomic": str(self.amount_atomic)}

    @property
    def question(self) -> str:
        """One sentence for a person."""
        most = f"up to {self.amount}" if self.scheme == "upto" else self.amount
        return f"Pay {most} {self.symbol} to {self.payee} at {self.endpoint} for {self.model}?"


Approval = Callable[[ApprovalRequest], bool | Awaitable[bool]]
"""Answers whether a payment may be signed; sync or async. What it raises ends the call, and nothing is signed."""


def ask_in_terminal(request: ApprovalRequest) -> bool:
    """Asks on the terminal, and takes `y` or `yes` for yes. Without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    print(f"{request.question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def asked(
    approval: Approval, request: ApprovalRequest, *, is_blocking: bool
) -> tuple[Future[Any], Callable[[], object]]:
    """The answer to come, and a function that gives up asking.

    `approval` runs with the caller's context variables, such as the run that LangGraph keeps there.
    """
    context = contextvars.copy_context()
    if is_blocking or not inspect.iscoroutinefunction(approval):
        return in_thread(lambda: _answer(approval, request, context), name="opengradient-approval"), lambda: None
    answer: Future[Any] = Future()
    task = asyncio.get_running_loop().create_task(approval(request), context=context)
    task.add_done_callback(lambda done: _hand_over(done, answer))
    return answer, task.cancel


def not_approved(request: ApprovalRequest, verdict: str, timeout_s: float) -> PaymentNotApproved:
    """The error for a payment that a person refused, or did not answer within `timeout_s`."""
    why = "was refused" if verdict == "refused" else f"was not answered within {timeout_s:g} s"
    return PaymentNotApproved(
        f"The payment of up to {request.amount} {request.symbol} to {request.payee} for a call to {request.model} "
        f"{why}. Nothing was signed. Ask again with a new call, or raise the policy's `approve_above`"
        f"{'' if verdict == 'refused' else ' or `approval_timeout_s`'}.",
        call_id=request.call_id,
    )


def _answer(approval: Approval, request: ApprovalRequest, context: contextvars.Context) -> Any:
    answer = context.run(approval, request)
    if not inspect.isawaitable(answer):
        return answer

    async def awaited() -> Any:
        return await answer

    with asyncio.Runner() as runner:
        return runner.run(awaited(), context=context)


def _hand_over(done: asyncio.Task[Any], answer: Future[Any]) -> None:
    if done.cancelled():
        answer.cancel()
    elif (problem := done.exception()) is not None:
        answer.set_exception(problem)
    else:
        answer.set_result(done.result())
