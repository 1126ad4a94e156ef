"""`opengradient-x402 chat`: one paid call. The answer goes to standard output, the bill to standard error."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengradient_x402.cli.options import (
    GatewayOption,
    JsonOption,
    KnownNetworks,
    LedgerOption,
    NetworkOption,
    RpcOption,
    opened_payments,
)
from opengradient_x402.cli.output import working

if TYPE_CHECKING:
    from opengradient_x402.completions import Completion
    from opengradient_x402.gateway.client import GatewayClient
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.networks import Network
    from opengradient_x402.proofs.attestation import VerifyTee


def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to ask; `-` or nothing reads standard input.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="See `models`.")] = "openai/gpt-5",
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    mode: Annotated[str | None, typer.Option(help="private, batch or individual (OG_SETTLEMENT_MODE).")] = None,
    verify_tee: Annotated[
        str, typer.Option(help="The enclave's proof: off, warn, require or require-before.")
    ] = "warn",
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the settlement.")] = 0,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    gateway: GatewayOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model, pay for the answer, and show what it cost and its receipt."""
    from opengradient_x402.cli.options import gateway_of
    from opengradient_x402.gateway.client import GatewayClient
    from opengradient_x402.settings import Settings

    body = _body(prompt, model=model, system=system, max_tokens=max_tokens)
    with opened_payments(network, ledger, rpc_url) as payments:
        client = GatewayClient(
            payments,
            base_url=gateway_of(gateway, payments.network),
            settlement_mode=mode or Settings.load().settlement_mode,
            verify_tee=verify_tee_of(verify_tee),
        )
        with client:
            completion = _asked(client, body, quietly=as_json)
        receipt = completion.receipt
        if receipt is not None and wait_s:
            receipt = _waited(receipt, wait_s)
        if as_json:
            _print_json(completion, receipt)
        elif receipt is not None:
            _print_bill(completion, receipt, network=payments.network)


def verify_tee_of(choice: str) -> VerifyTee:
    from opengradient_x402.proofs.attestation import VerifyTee

    try:
        return VerifyTee(choice)
    except ValueError as exc:
        names = ", ".join(VerifyTee)
        raise typer.BadParameter(f"{choice!r} is not one of {names}", param_hint="--verify-tee") from exc


def _body(prompt: str | None, *, model: str, system: str | None, max_tokens: int | None) -> dict[str, Any]:
    piped = sys.stdin  # None when it is closed
    if prompt is None and (piped is None or piped.isatty()):
        raise typer.BadParameter("say what to ask, or pipe it in", param_hint="prompt")
    text = ("" if piped is None else piped.read()) if prompt in (None, "-") else prompt
    if not text or not text.strip():
        raise typer.BadParameter("there is nothing to ask", param_hint="prompt")
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": text}]}
    return body if max_tokens is None else body | {"max_tokens": max_tokens}


def _asked(client: GatewayClient, body: dict[str, Any], *, quietly: bool) -> Completion:
    from opengradient_x402.cli.output import note, write_answer

    receipts: list[SettlementReceipt] = []
    try:
        with ExitStack() as until_it_answers:
            until_it_answers.enter_context(working("Paying, and waiting for the first words"))
            with client.stream(body, on_receipt=receipts.append) as stream:
                for delta in stream:
                    until_it_answers.close()
                    if not quietly:
                        write_answer(delta.content)
    except KeyboardInterrupt:
        for receipt in receipts:
            note(f"\nInterrupted; what was served is paid: `opengradient-x402 receipts show {receipt.call_id}`")
        if not receipts:
            note("\nInterrupted. If a payment was signed by then, it is in `opengradient-x402 receipts list`.")
        raise
    if not quietly:
        typer.echo()
    if stream.completion is None:
        raise AssertionError("a stream that was read to its end has a completion")
    return stream.completion


def _waited(receipt: SettlementReceipt, wait_s: float) -> SettlementReceipt:
    from opengradient_x402.cli.output import note

    try:
        with working(f"Waiting for the settlement, at most {wait_s:g} s"):
            return receipt.wait_settled(wait_s)
    except KeyboardInterrupt:
        note(f"\nInterrupted; the answer is paid: `opengradient-x402 receipts show {receipt.call_id} --refresh`")
        raise


def _print_json(completion: Completion, receipt: SettlementReceipt | None) -> None:
    from opengradient_x402.cli.output import print_json

    usage = completion.usage
    print_json(
        {
            "model": completion.model,
            "text": completion.content,
            "finish_reason": completion.finish_reason,
            "usage": None
            if usage is None
            else {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
            "receipt": None if receipt is None else receipt.to_json(),
        }
    )


def _print_bill(completion: Completion, receipt: SettlementReceipt, *, network: Network) -> None:
    from opengradient_x402.cli.output import AMOUNT_WORDS, STATUS_WORDS, amount_of, note, status_word

    usage = completion.usage
    tokens = "" if usage is None else f", {usage.prompt_tokens} + {usage.completion_tokens} tokens"
    amount, how = amount_of(receipt)
    cost = "cost not quoted" if how == "unknown" else f"{network.asset.format(amount)} {how}"
    proof = f", enclave proof {receipt.tee_verified}" if receipt.tee_verified else ""
    note(f"\n{completion.model}: {cost}{tokens}{proof}")
    word = status_word(receipt)
    note(f"{word}: {STATUS_WORDS[word] if how != 'unknown' else AMOUNT_WORDS[how][1]}")
    if receipt.payment_tx_hash:
        note(f"transaction {KnownNetworks.page_of(network, receipt.payment_tx_hash) or receipt.payment_tx_hash}")
    note(f"opengradient-x402 receipts show {receipt.call_id}")
