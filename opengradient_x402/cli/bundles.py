"""`opengradient-x402 receipts verify`: what a bundle shows, class by class, as text or JSON."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.options import JsonOption, NetworkOption, network_of
from opengradient_x402.cli.output import print_json, shown

if TYPE_CHECKING:
    from opengradient_x402.networks import Network
    from opengradient_x402.proofs.findings import Finding
    from opengradient_x402.proofs.history import Head
    from opengradient_x402.proofs.verification import Verification

_SHOWN = 5
_HEAD = re.compile(r"([0-9]{1,15}):(0x[0-9a-f]{64})", re.ASCII)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A file that `export --format bundle` wrote; `-` is standard input.")],
    offline: Annotated[bool, typer.Option("--offline", help="Check the file alone; ask no chain.")] = False,
    network: NetworkOption = None,
    rpc_url: Annotated[
        list[str] | None, typer.Option("--rpc-url", help="A node of the payments' chain; given twice, both must agree.")
    ] = None,
    relay_rpc_url: Annotated[
        list[str] | None,
        typer.Option("--relay-rpc-url", help="A node of the chain of relay and registry, if another; also twice."),
    ] = None,
    signer: Annotated[str | None, typer.Option("--signer", help="Demand this wallet's signature.")] = None,
    earlier: Annotated[
        str | None, typer.Option("--earlier", help="An earlier bundle, or its head (SIZE:ROOT), to be continued.")
    ] = None,
    from_block: Annotated[
        int | None, typer.Option(min=0, help="Look for settlements from here, not the file's.")
    ] = None,
    to_block: Annotated[int | None, typer.Option(min=0, help="Look for settlements up to here.")] = None,
    pcr_hash: Annotated[
        list[str] | None, typer.Option("--pcr-hash", help="An enclave image that you know (0x and 64 hex digits).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: what is proven, read, and only stated, and why; exit code 1 when anything is refuted."""
    from opengradient_x402.errors import BundleUnreadable
    from opengradient_x402.proofs.verification import verify_bundle

    content = _read(bundle)
    try:
        verification = verify_bundle(
            content,
            network=_readers_network(network, content),  # inside: it reads the file too
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
    if not print_verification(verification, as_json=as_json):
        raise typer.Exit(1)


def _readers_network(choice: str | None, content: bytes) -> Network | None:
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
    return _read(Path(text), hint="--earlier")


def _read(path: Path, *, hint: str = "bundle") -> bytes:
    from opengradient_x402.proofs.bundle import MAX_BYTES

    if str(path) == "-":
        return typer.get_binary_stream("stdin").read(MAX_BYTES + 1)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise typer.BadParameter(f"{path} cannot be read ({exc.strerror})", param_hint=hint) from exc


def print_verification(verification: Verification, *, as_json: bool) -> bool:
    """Prints it; whether nothing is refuted."""
    from opengradient_x402.proofs.findings import CLASSES, Refuted, Undecided
    from opengradient_x402.proofs.history import head_of

    bundle, counted, head = verification.bundle, verification.totals, head_of(verification.bundle)
    is_sound = not verification.of(Refuted)
    if as_json:
        print_json(
            {
                "totals": counted,
                "offline": not verification.is_live,
                "signed_by": bundle.signed_by,
                "digest": bundle.digest,
                "head": None if head is None else f"{head.size}:{head.root}",
                "receipts": len(verification.contents.receipts),
                "findings": [finding.to_json() for finding in verification.findings],
            }
        )
        return is_sound
    for kind in CLASSES:
        _print_group(kind.heading, verification.of(kind), in_full=kind in (Refuted, Undecided))
    where = "with a node" if verification.is_live else "offline, from the file alone"
    typer.echo(
        f"{len(verification.contents.receipts)} receipts checked {where}: {counted['proven']} statements are proven by "
        f"a signature, {counted['read']} read from a source, {counted['stated']} only stated; {counted['undecided']} "
        f"are not decided, {counted['refuted']} refuted."
    )
    if head is not None:
        typer.echo(f"Keep this head for the next audit (`--earlier`): {head.size}:{head.root}")
    return is_sound


def _print_group(heading: str, findings: list[Finding], *, in_full: bool) -> None:
    if not findings:
        return
    typer.echo(heading)
    for source, of_source in groupby(sorted(findings, key=_by_source), key=_source):
        if source:
            typer.echo(shown(f"  {source}"))
        for statement, group in groupby(of_source, key=_statement):
            same = list(group)
            typer.echo(f"  {statement}: {len(same)}")
            for finding in same if in_full else same[:_SHOWN]:
                typer.echo(shown(f"    {finding.about}: {finding.why}"))
            if not in_full and len(same) > _SHOWN:
                typer.echo(f"    … and {len(same) - _SHOWN} more (`--json` lists all)")
    typer.echo()


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
