"""`opengradient-x402 receipts verify`: what a bundle shows, class by class, as text or JSON."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.groups import grouped, model_of
from opengradient_x402.cli.options import FullOption, JsonOption, KnownNetworks, NetworkOption, network_of
from opengradient_x402.cli.output import (
    amount_of,
    counted,
    note,
    print_json,
    print_pairs,
    print_table,
    rounded,
    terminal,
    working,
)

if TYPE_CHECKING:
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.networks import Network
    from opengradient_x402.proofs.bundle import Contents
    from opengradient_x402.proofs.findings import Finding
    from opengradient_x402.proofs.history import Head
    from opengradient_x402.proofs.verification import Verification

_SHOWN = 3
BundleArgument = Annotated[
    Path | None, typer.Argument(help="A bundle, in place of the ledger; `-` is standard input.", show_default=False)
]
_HEAD = re.compile(r"([0-9]{1,15}):(0x[0-9a-f]{64})", re.ASCII)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A file that `export --format bundle` wrote; `-` is standard input.")],
    offline: Annotated[bool, typer.Option("--offline", help="Check only the file, without reading a chain.")] = False,
    network: NetworkOption = None,
    rpc_url: Annotated[
        list[str] | None, typer.Option("--rpc-url", help="A node of the chain of the payments; two nodes must agree.")
    ] = None,
    relay_rpc_url: Annotated[
        list[str] | None,
        typer.Option("--relay-rpc-url", help="A node of the chain of relay and registry, if that is another chain."),
    ] = None,
    signer: Annotated[str | None, typer.Option("--signer", help="The wallet that must have signed the bundle.")] = None,
    earlier: Annotated[
        str | None, typer.Option("--earlier", help="An earlier bundle or head (SIZE:ROOT) that this one continues.")
    ] = None,
    from_block: Annotated[int | None, typer.Option(min=0, help="The first block to search for settlements.")] = None,
    to_block: Annotated[int | None, typer.Option(min=0, help="The last block to search for settlements.")] = None,
    pcr_hash: Annotated[
        list[str] | None, typer.Option("--pcr-hash", help="An enclave image that you accept (0x and 64 hex digits).")
    ] = None,
    is_full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: what is proven, what was read, and what is only stated. Exit code 1: something is refuted."""
    from opengradient_x402.errors import BundleUnreadable
    from opengradient_x402.proofs.findings import Refuted
    from opengradient_x402.proofs.verification import verify_bundle

    content = read_file(bundle)
    try:
        with working("Checking the file" if offline else "Checking the file, and reading the chain"):
            verification = verify_bundle(
                content,
                network=readers_network(network, content),  # inside: it reads the file too
                rpc_url=rpc_url,
                relay_rpc_url=relay_rpc_url,
                is_offline=offline,
                expected_signer=signer,
                earlier=None if earlier is None else _earlier(earlier),
                from_block=from_block,
                to_block=to_block,
                pcr_hashes=[image.lower() for image in pcr_hash or ()],
            )
    except BundleUnreadable as exc:
        typer.echo(f"{type(exc).__name__}: {exc}", err=True)
        raise typer.Exit(1) from exc
    if as_json:
        _print_json(verification)
    else:
        _print_verification(verification, KnownNetworks(network, is_own=False), is_full=is_full)
    if verification.of(Refuted):
        raise typer.Exit(1)


def receipts_in(path: Path, *, since: int = 0, payer: str | None = None) -> list[SettlementReceipt]:
    """The receipts in a bundle, oldest first, those of one second as the file has them. Only its form is verified.

    Standard error says so: "settled" and "verified" are then the words of the file's writer.
    """
    chosen = [
        receipt
        for receipt in read_contents(read_file(path)).receipts
        if receipt.created_at >= since and payer in (None, receipt.payer)
    ]
    note(
        "All of this is what the writer of the file says: nothing of it was checked. To check it: "
        f"`opengradient-x402 receipts verify {path}`."
    )
    return sorted(chosen, key=lambda receipt: receipt.created_at)


def read_contents(content: bytes) -> Contents:
    """What a bundle is about. A file that is none ends the command with exit code 1."""
    from opengradient_x402.errors import BundleUnreadable
    from opengradient_x402.proofs.bundle import Bundle, Contents
    from opengradient_x402.proofs.bundle_schema import check_shape

    try:
        bundle = Bundle.from_bytes(content)
        check_shape(bundle)
        return Contents.of(bundle)
    except BundleUnreadable as exc:
        typer.echo(f"{type(exc).__name__}: {exc}", err=True)
        raise typer.Exit(1) from exc


def readers_network(choice: str | None, content: bytes) -> Network | None:
    """The network that was named; else the environment's, if the bundle is about its chain."""
    from opengradient_x402.errors import UnknownNetwork
    from opengradient_x402.proofs.bundle import Bundle

    if choice is not None:
        return network_of(choice)
    chain_id = Bundle.from_bytes(content).network.get("chain_id")
    try:
        own = network_of(None)
    except UnknownNetwork:
        return None
    return own if own.chain_id == chain_id else None


def _earlier(text: str) -> bytes | Head:
    from opengradient_x402.proofs.history import Head

    if (head := _HEAD.fullmatch(text)) is not None:
        return Head(size=int(head[1]), root=head[2])
    return read_file(Path(text), hint="--earlier")


def read_file(path: Path, *, hint: str = "bundle") -> bytes:
    """The bytes of a file or of standard input, as far as a bundle may be long. Raises BadParameter."""
    from opengradient_x402.proofs.bundle import MAX_BYTES

    if str(path) == "-":
        return typer.get_binary_stream("stdin").read(MAX_BYTES + 1)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise typer.BadParameter(f"{path} cannot be read ({exc.strerror})", param_hint=hint) from exc


def _print_json(verification: Verification) -> None:
    from opengradient_x402.proofs.history import head_of

    bundle, head = verification.bundle, head_of(verification.bundle)
    print_json(
        {
            "totals": verification.totals,
            "offline": not verification.is_live,
            "signed_by": bundle.signed_by,
            "digest": bundle.digest,
            "head": None if head is None else f"{head.size}:{head.root}",
            "receipts": len(verification.contents.receipts),
            "findings": [finding.to_json() for finding in verification.findings],
        }
    )


def _print_verification(verification: Verification, known: KnownNetworks, *, is_full: bool) -> None:
    from rich.text import Text

    from opengradient_x402.proofs.findings import CLASSES, Refuted, Undecided
    from opengradient_x402.proofs.history import head_of
    from opengradient_x402.proofs.verification import NOT_ASKED

    counts, refuted = verification.totals, verification.of(Refuted)
    where = "with a node" if verification.is_live else "offline, from the file alone"
    verdict = f"✗ {counted(len(refuted), 'statement')} refuted" if refuted else "✓ Nothing is refuted"
    checked = f"{verdict}: {counted(len(verification.contents.receipts), 'receipt')} checked {where}."
    terminal().print(Text(checked, "bold red" if refuted else "bold green"))
    typer.echo(
        f"Of {counted(sum(counts.values()), 'statement')}: {counts['proven']} proven by a signature, "
        f"{counts['read']} read from a source,\n"
        f"{counts['stated']} only stated, {counts['undecided']} not decided, {counts['refuted']} refuted.\n"
    )
    _print_costs(verification.contents.receipts, known)
    for kind in CLASSES:
        found = verification.of(kind)
        if kind is Undecided:  # what the file has evidence of is another matter than what nothing is known of
            recorded = [finding for finding in found if finding.why.startswith(NOT_ASKED)]
            found = [finding for finding in found if not finding.why.startswith(NOT_ASKED)]
            _print_group("Only recorded in the file: the chain was not asked", recorded, is_full=is_full)
        _print_group(kind.heading, found, is_full=is_full or kind is Refuted)
    if (head := head_of(verification.bundle)) is not None:
        typer.echo(f"Keep this head for the next audit (`--earlier`):\n{head.size}:{head.root}")


def _print_costs(receipts: list[SettlementReceipt], known: KnownNetworks) -> None:
    """What was bought, and how sure its cost is: the payer's own numbers."""

    from rich.text import Text

    def summed(name: str, of_name: list[SettlementReceipt], decimals: int) -> tuple[str, ...]:
        cost = rounded(sum(amount_of(receipt)[0] for receipt in of_name), decimals=decimals)
        words = dict.fromkeys(amount_of(receipt)[1] for receipt in of_name)
        return (name, f"{len(of_name):,}", cost, ", ".join(words))

    for of_token in grouped(receipts, lambda receipt: (receipt.network, receipt.asset)).values():
        decimals, symbol = known.token(of_token[0])
        rows = [summed(model, of_model, decimals) for model, of_model in grouped(of_token, model_of).items()]
        rows.append(summed("together", of_token, decimals))
        unit = symbol if decimals else "units"
        print_table(("in this file", "calls", unit, "which is"), rows, right=("calls", unit))
        if not decimals:
            terminal().print(
                Text(
                    f"The decimals of {of_token[0].asset} are not known here, and those in a file could be wrong. With "
                    "its `--network`, amounts are decimal."
                )
            )
        typer.echo()


def _print_group(heading: str, findings: list[Finding], *, is_full: bool) -> None:
    """Findings of one class. What is said of many subjects alike is one line, if not `is_full`."""
    from rich.text import Text

    if not findings:
        return
    terminal().print(Text(heading, "bold"))
    pairs: list[tuple[str, str]] = []
    for source, of_source in groupby(sorted(findings, key=_by_source), key=_source):
        if source:
            pairs.append(("", source))
        for statement, group in groupby(of_source, key=_statement):
            same = list(group)
            pairs.append((f"{len(same):>4}", statement))
            reasons = [f"{finding.about}: {finding.why}" for finding in same] if is_full else _common(same)
            pairs += [("", f"- {why}") for why in reasons]
    print_pairs(pairs)
    typer.echo()


def _common(findings: list[Finding]) -> list[str]:
    """Why they could not be decided, each reason once."""
    from opengradient_x402.proofs.findings import Undecided
    from opengradient_x402.proofs.verification import NOT_ASKED

    reasons = {finding.why.partition(" (")[0]: None for finding in findings if isinstance(finding, Undecided)}
    reasons.pop(NOT_ASKED, None)
    first = list(reasons)[:_SHOWN]
    return first + ([f"and {len(reasons) - _SHOWN} other reasons (`--full`)"] if len(reasons) > _SHOWN else [])


def _by_source(finding: Finding) -> tuple[str, str]:
    return _source(finding), finding.statement


def _source(finding: Finding) -> str:
    """Where it was read, for a group of findings of one source."""
    basis = finding.to_json()
    if "source" not in basis:
        return ""
    block = f", block {basis['block_number']} ({basis['block_hash']})" if "block_number" in basis else ""
    return f"[{basis['source']}{block}]"


def _statement(finding: Finding) -> str:
    return finding.statement
