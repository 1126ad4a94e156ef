"""Checks an audit bundle: from the file alone, or with the auditor's own nodes.

Nothing in a bundle is believed, and nothing in it decides what is trusted: contracts, token, payees and blob store
are those of the reader's network, and who answers is the reader's node (or two, which must agree). `export` makes the
file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from opengradient_x402.addresses import checksum_address
from opengradient_x402.chain.node import look_up
from opengradient_x402.chain.sources import Source
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.networks import PRESETS, Network, with_node
from opengradient_x402.proofs.anchors import anchor_findings
from opengradient_x402.proofs.audit import Audit, audit
from opengradient_x402.proofs.bundle import Bundle, Contents, maker_finding
from opengradient_x402.proofs.bundle_schema import check_shape
from opengradient_x402.proofs.checks.completeness import Explained, Period, completeness, stated_completeness
from opengradient_x402.proofs.checks.network import OF_ENCLAVES, network_finding, network_of
from opengradient_x402.proofs.evidence import AskedOnce, Evidence, Replayed
from opengradient_x402.proofs.findings import (
    Finding,
    Proven,
    Read,
    Refuted,
    Statement,
    Undecided,
    totals,
    without_chain,
)
from opengradient_x402.proofs.history import Head, history_findings

NOT_ASKED: Final = "the file's own evidence agrees, and the chain was not asked"
"""Why a statement that is recorded in a bundle is not decided offline."""
_WRITERS: Final = "the contracts are named by the file alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found out about a bundle, statement by statement: there is no one word for all of them."""

    bundle: Bundle
    contents: Contents
    findings: tuple[Finding, ...]
    is_live: bool

    @property
    def totals(self) -> dict[str, int]:
        """How many statements were proven, read, stated, undecided and refuted."""
        return totals(self.findings)

    def of(self, kind: type[Finding]) -> list[Finding]:
        """The findings of one class."""
        return [finding for finding in self.findings if isinstance(finding, kind)]


def verify_bundle(
    content: bytes,
    *,
    network: Network | None = None,
    rpc_url: str | Sequence[str] | None = None,
    relay_rpc_url: str | Sequence[str] | None = None,
    is_offline: bool = False,
    expected_signer: str | None = None,
    earlier: bytes | Head | None = None,
    from_block: int | None = None,
    to_block: int | None = None,
    pcr_hashes: Collection[str] = (),
) -> Verification:
    """Everything that can be found out about a bundle.

    `network` is the reader's own description of the network; a preset with the same chain id when not given. Without
    either, the file alone names the contracts, and nothing counts as read through them. `rpc_url` is a node of the
    payments' chain, or two that must agree (the network's own when not given); `relay_rpc_url` the same for the chain
    of relay and registry. `expected_signer` demands that address's signature; `earlier` is a bundle, or a head, that
    the reader kept; the blocks choose another period than the file's; `pcr_hashes` are images of enclaves that the
    reader knows, whose attestations need no registry. Raises BundleUnreadable for a file that was
    changed, ConfigurationError when a node is needed.
    """
    if expected_signer is not None:
        expected_signer = _address(expected_signer)
    bundle = _read(content)
    contents = Contents.of(bundle)
    maker = maker_finding(bundle, payers=contents.payers, expected_signer=expected_signer)
    trusted = _trusted(bundle, network)
    findings = [maker, network_finding(bundle, trusted)]
    signer = maker.key if isinstance(maker, Proven) else None
    findings += history_findings(bundle, signer=signer, earlier=_kept(earlier))
    period = _period(bundle, from_block, to_block)
    replayed = Replayed(Evidence(bundle.records))
    described_as = _nowhere(trusted) or network_of(bundle)
    recorded = look_up(audit(contents, network=described_as, sources=replayed, pcr_hashes=pcr_hashes)).findings
    recorded += look_up(anchor_findings(bundle, network=described_as, sources=replayed))
    if is_offline:
        findings += [without_chain(finding, why=NOT_ASKED) for finding in recorded]
        findings += stated_completeness(contents.payers, period)
    else:
        live = _live(bundle, contents, trusted, period, _urls(rpc_url), _urls(relay_rpc_url), pcr_hashes)
        decided = {(finding.statement, finding.about) for finding in live if isinstance(finding, Refuted)}
        # Evidence that contradicts its own receipts is reported too, also when the chain agrees now.
        findings += live
        findings += [
            item for item in recorded if isinstance(item, Refuted) and (item.statement, item.about) not in decided
        ]
    return Verification(bundle=bundle, contents=contents, findings=tuple(findings), is_live=not is_offline)


def _read(content: bytes) -> Bundle:
    bundle = Bundle.from_bytes(content)
    check_shape(bundle)
    return bundle


def _kept(earlier: bytes | Head | None) -> Head | Bundle | None:
    if not isinstance(earlier, bytes):
        return earlier
    before = _read(earlier)
    if before.history is None:
        raise ConfigurationError(
            "The earlier bundle has no history to compare with. Nothing was checked. Give another one, or none."
        )
    return before


# -- what the reader trusts


def _trusted(bundle: Bundle, network: Network | None) -> Network | None:
    """The reader's own network, if it is the bundle's."""
    chain_id = bundle.network["chain_id"]
    if network is not None:
        if network.chain_id != chain_id:
            raise ConfigurationError(
                f"The bundle is about chain {chain_id}, and the network {network.name} is chain {network.chain_id}. "
                "Nothing was checked. Give the network that the bundle is about (OG_NETWORK, `--network`)."
            )
        return network
    token = bundle.network["asset"]["address"]
    of_chain = [preset for preset in PRESETS.values() if preset.chain_id == chain_id]
    return next((preset for preset in of_chain if preset.asset.address == token), next(iter(of_chain), None))


def _nowhere(network: Network | None) -> Network | None:
    """The reader's network for evidence that is replayed: blobs are in the file, so their store does not matter."""
    return None if network is None else replace(network, blob_url=network.blob_url or "https://offline.invalid")


def _address(text: str) -> str:
    try:
        return checksum_address(text)
    except ValueError as exc:
        raise ConfigurationError(
            f"{exc} Nothing was checked. Give the address of the wallet that must have signed."
        ) from exc


def _urls(given: str | Sequence[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)


# -- with nodes


def _live(
    bundle: Bundle,
    contents: Contents,
    trusted: Network | None,
    period: Period | None,
    urls: Sequence[str],
    relay_urls: Sequence[str],
    pcr_hashes: Collection[str],
) -> list[Finding]:
    known = trusted if trusted is not None else replace(network_of(bundle), blob_url=None)
    if not urls and trusted is None:
        raise ConfigurationError(
            f"The bundle is about chain {known.chain_id}, for which no public node is known. Nothing was checked. Give "
            "its network with `--network` or a node with `--rpc-url`, or check the file alone with `--offline`."
        )
    views = []
    for index in range(max(1, len(urls), len(relay_urls))):
        place = _through(known, _of(urls, index), _of(relay_urls, index))
        views.append(look_up(_viewed(bundle, contents, place, period, pcr_hashes)))
    found = views[0] if len(views) == 1 else _agreed(views)
    return found if trusted is not None else [without_chain(finding, why=_WRITERS) for finding in found]


def _of(urls: Sequence[str], index: int) -> str | None:
    return urls[min(index, len(urls) - 1)] if urls else None


def _through(network: Network, url: str | None, relay_url: str | None) -> Network:
    """The network by this node; relay and registry by theirs, which is the same where the chain is."""
    at = with_node(network, rpc_url=url)
    contracts = {
        name: replace(contract, rpc_url=relay_url or (at if contract.chain_id == at.chain_id else contract).rpc_url)
        for name in OF_ENCLAVES
        if (contract := getattr(network, name)) is not None
    }
    return replace(at, **contracts)


def _viewed(
    bundle: Bundle, contents: Contents, network: Network, period: Period | None, pcr_hashes: Collection[str]
) -> Steps[list[Finding]]:
    sources = AskedOnce()
    seen: Audit = yield from audit(contents, network=network, sources=sources, pcr_hashes=pcr_hashes)
    anchored = yield from anchor_findings(bundle, network=network, sources=sources)
    found = [*seen.findings, *anchored]
    if period is None:
        return found + stated_completeness(contents.payers, None)
    for payer in contents.payers:
        own = [channel.id for channel in contents.channels if channel.payer == payer]
        explained = Explained(
            claims=seen.claims,
            channels=own,
            unexplained={name: amount for name, amount in seen.unexplained.items() if name in own},
        )
        found.append((yield from completeness(payer, period, explained, network=network, sources=sources)))
    return found


def _agreed(views: Sequence[list[Finding]]) -> list[Finding]:
    """The answer that all nodes give. Where they differ, nothing is known."""
    said = [{(finding.statement, finding.about): finding for finding in view} for view in views]
    keys = dict.fromkeys(key for view in said for key in view)
    return [_together(*key, [view.get(key) for view in said]) for key in keys]


def _together(statement: Statement, about: str, said: Sequence[Finding | None]) -> Finding:
    first = said[0]
    if first is None or not all(one is not None and _agree(first, one) for one in said[1:]):
        why = "the nodes disagree: " + "; ".join(map(_told, said))
        return Undecided(statement=statement, about=about, why=why)
    if isinstance(first, Read):
        return replace(first, source=_joined([one.source for one in said if isinstance(one, Read)]))
    if isinstance(first, Proven) and first.owner is not None:
        return replace(first, owner=_joined([one.owner for one in said if isinstance(one, Proven) and one.owner]))
    return first


def _agree(one: Finding, other: Finding) -> bool:
    """Whether two nodes say the same: the class, what was read (confirmations may differ), and the chain's head."""
    if type(one) is not type(other) or not isinstance(one, Proven | Read) or not isinstance(other, Proven | Read):
        return type(one) is type(other)
    first, second = _source_of(one), _source_of(other)
    is_fork = first and second and first.block_number == second.block_number and first.block_hash != second.block_hash
    return not is_fork and (one.why == other.why or one.statement is Statement.CONFIRMED)


def _source_of(finding: Proven | Read) -> Source | None:
    return finding.source if isinstance(finding, Read) else finding.owner


def _told(finding: Finding | None) -> str:
    if finding is None:
        return "nothing"
    source = _source_of(finding) if isinstance(finding, Proven | Read) else None
    where = f" at block {source.block_number} ({source.block_hash})" if source and source.is_chain else ""
    return f"{finding.kind}{where}, {finding.why}"


def _joined(sources: Sequence[Source]) -> Source:
    """Several nodes as one source, at the block that all of them had reached."""
    lowest = min(sources, key=lambda source: source.block_number or 0)
    names = dict.fromkeys(source.name for source in sources)
    others = [name.partition(" by ")[2] for name in names][1:]
    return replace(lowest, name=" and ".join([next(iter(names)), *others]))


def _period(bundle: Bundle, from_block: int | None, to_block: int | None) -> Period | None:
    told = bundle.period or {}
    first = told.get("from_block") if from_block is None else from_block
    last = told.get("to_block") if to_block is None else to_block
    if first is None or last is None:
        return None
    if first > last:
        raise ConfigurationError(
            f"The period from block {first} to block {last} has no blocks. Nothing was checked. Give the earlier block "
            "as `from_block` (`--from-block`)."
        )
    return Period(from_block=first, to_block=last)
