"""The explorer's routes: reads what a page needs, and serves it.

Endpoints are plain functions, so the server runs them in threads.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from eth_utils.address import is_hex_address, to_checksum_address
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.contracts import ADDRESSES
from opengradient_devnet.explorer import chain_pages, payment_pages
from opengradient_devnet.explorer.layout import cards, lead, note, page, pager, section, table
from opengradient_devnet.explorer.markup import Node, element
from opengradient_devnet.explorer.notation import BASE, Notation, counted, link, number, opg
from opengradient_devnet.explorer.reader import Block, ChainReader
from opengradient_devnet.explorer.search import Search
from opengradient_devnet.gateway.payment.served import ServedCalls
from opengradient_devnet.gateway.payment.sessions import SessionBook
from opengradient_devnet.gateway.proofs.batches import BlobStore

_PAGE = 25
_GLANCE = 6
_HEADERS = {
    # What models and callers say is shown here; if escaping ever failed, this would still let nothing run.
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_NAMES = {
    "OPG": "OPG token",
    "Permit2": "Permit2",
    "UptoProxy": "upto proxy",
    "ExactProxy": "exact proxy",
    "Multicall3": "Multicall3",
    "TEERegistry": "enclave registry",
    "Relay": "settlement relay",
}


class Explorer:
    """Pages about one devnet. `network` is its public description."""

    def __init__(
        self,
        *,
        chain: Chain,
        sessions: SessionBook,
        served: ServedCalls,
        blobs: BlobStore,
        network: Mapping[str, Any],
    ) -> None:
        self._reader = ChainReader(chain)
        self._sessions = sessions
        self._blobs = blobs
        self._served = served
        self._search = Search(self._reader, blobs=blobs, sessions=sessions, served=served)
        self._chain_id = chain.chain_id
        self._labels = {ADDRESSES[name].lower(): label for name, label in _NAMES.items()}
        self._labels |= {address.lower(): "gateway" for address in network["payees"]}
        self._labels |= {address.lower(): "facilitator" for address in network["facilitators"]}
        self._labels[chain.faucet.address.lower()] = "faucet"
        self._style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")

    def routes(self) -> list[Route]:
        """What to mount at the root of the devnet's origin."""
        pages: dict[str, Callable[[Request], Response]] = {
            "": self._overview,
            "/blocks": self._blocks,
            "/block/{block}": self._block,
            "/txs": self._transactions,
            "/tx/{tx_hash}": self._transaction,
            "/address/{address}": self._address,
            "/payments": self._payments,
            "/sessions": self._sessions_page,
            "/data": self._data,
            "/blob/{blob_id}": self._blob,
            "/search": self._find,
            "/style.css": self._style_sheet,
        }
        return [Route(f"{BASE}{path}", endpoint, methods=["GET"]) for path, endpoint in pages.items()]

    # --- overview ------------------------------------------------------------------------------------------

    def _overview(self, _request: Request) -> Response:
        notation, head_number = self._notation(), self._reader.head_number()
        sessions, settlements = self._sessions.views, self._sessions.settlements
        settled_atomic = sum(record.amount_atomic for record in settlements)
        records = self._reader.data_records()
        payments = list(itertools.islice(self._reader.payments(), _GLANCE))
        body = [
            cards(
                ("Blocks", number(head_number), "height of the chain"),
                ("Payments", number(self._reader.payment_count()), "settled on chain"),
                ("Taken by the gateway", opg(settled_atomic), f"in {counted(len(settlements), 'settlement')}"),
                ("Open sessions", number(len(sessions)), "not settled yet"),
                ("Data settlements", number(len(records)), "batches and single calls"),
            ),
            section("Payments", payment_pages.payments_table(payments, notation), more=link("/payments", "All")),
            section(
                "Open sessions",
                payment_pages.sessions_table(sessions[:_GLANCE], notation),
                more=link("/sessions", "All"),
            )
            if sessions
            else None,
            section(
                "Transactions",
                chain_pages.transactions_table(self._newest(_GLANCE, newest=head_number), notation),
                more=link("/txs", "All"),
            ),
            section(
                "Data settlements", payment_pages.data_table(records[:_GLANCE], notation), more=link("/data", "All")
            ),
        ]
        return self._page("Overview", *body, here="")

    def _newest(self, count: int, *, newest: int) -> list[tuple[Block, dict[str, Any]]]:
        pairs = ((block, item) for block in self._reader.busy_blocks(newest=newest) for item in block.transactions)
        return list(itertools.islice(pairs, count))

    # --- the chain -----------------------------------------------------------------------------------------

    def _blocks(self, request: Request) -> Response:
        head_number = self._reader.head_number()
        newest = min(head_number, _whole(request.query_params.get("from"), default=head_number))
        blocks = self._reader.blocks(newest=newest, count=_PAGE)
        turn = pager(
            newer=link(f"/blocks?from={newest + _PAGE}", "← Newer") if newest < head_number else None,
            older=link(f"/blocks?from={newest - _PAGE}", "Older →") if newest >= _PAGE else None,
        )
        return self._page("Blocks", chain_pages.blocks_table(blocks, self._notation()), turn, here="/blocks")

    def _block(self, request: Request) -> Response:
        named = request.path_params["block"]
        if _HASH.fullmatch(named):
            block = self._reader.block(named.lower())
        else:
            block = self._reader.block(int(named)) if _NUMBER.fullmatch(named) else None
        if block is None:
            return self._missing("block", named)
        body = chain_pages.block_body(block, self._notation(), head_number=self._reader.head_number())
        return self._page(f"Block {number(block.number)}", body, here="/blocks")

    def _transactions(self, request: Request) -> Response:
        head_number = self._reader.head_number()
        newest = min(head_number, _whole(request.query_params.get("from"), default=head_number))
        shown = self._newest(_PAGE, newest=newest)
        oldest = shown[-1][0].number if len(shown) == _PAGE else 0
        turn = pager(
            newer=link("/txs", "← Newest") if newest < head_number else None,
            older=link(f"/txs?from={oldest - 1}", "Older →") if oldest > 0 else None,
        )
        return self._page("Transactions", chain_pages.transactions_table(shown, self._notation()), turn, here="/txs")

    def _transaction(self, request: Request) -> Response:
        tx_hash = request.path_params["tx_hash"]
        found = self._reader.transaction(tx_hash.lower()) if _HASH.fullmatch(tx_hash) else None
        if found is None:
            why = "It may have been dropped by a reorganisation, or belong to another chain or another run."
            return self._missing("transaction", tx_hash, why)
        notation = self._notation()
        if found.payments:
            calls = self._paid_calls(found.hash, notation)
            return self._page("Payment", chain_pages.transaction_body(found, notation, calls=calls), here="/payments")
        body = chain_pages.transaction_body(found, notation)
        is_data = any(event.contract == "Relay" for event in found.events)
        return self._page("Transaction", body, here="/data" if is_data else "/txs")

    def _paid_calls(self, tx_hash: str, notation: Notation) -> Node:
        """The calls that a payment paid for, each with where its data were settled."""
        ended = [record for record in self._sessions.settlements if record.transaction == tx_hash]
        calls = self._served.paid_by({record.authorization_id for record in ended})
        places = self._search.data_places([call.signature for call in calls])
        return section(
            "Calls",
            payment_pages.calls_table(calls, places, notation),
            note("These are the gateway's words: the chain does not show single calls.") if calls else None,
        )

    def _address(self, request: Request) -> Response:
        named = request.path_params["address"]
        if not is_hex_address(named) or not named.startswith("0x"):
            return self._missing("address", named)
        address = to_checksum_address(named)
        reader, hashes = self._reader, self._reader.transactions_of(address)
        shown = [found for tx_hash in hashes[:_PAGE] if (found := reader.transaction(tx_hash)) is not None]
        body = chain_pages.address_body(
            address,
            self._notation(),
            balances=(reader.opg_atomic(address), reader.native_wei(address), reader.allowance_atomic(address)),
            is_contract=reader.is_contract(address),
            transactions=shown,
            total=len(hashes),
        )
        return self._page("Address", body, here="/txs")

    # --- what is paid for ----------------------------------------------------------------------------------

    def _payments(self, request: Request) -> Response:
        skip = _whole(request.query_params.get("skip"), default=0)
        shown = list(itertools.islice(self._reader.payments(skip=skip), _PAGE))
        turn = pager(
            newer=link(f"/payments?skip={max(0, skip - _PAGE)}", "← Newer") if skip else None,
            older=link(f"/payments?skip={skip + _PAGE}", "Older →") if len(shown) == _PAGE else None,
        )
        about = lead("Every payment that was settled on this chain, by anybody.")
        return self._page(
            "Payments", about, payment_pages.payments_table(shown, self._notation()), turn, here="/payments"
        )

    def _sessions_page(self, _request: Request) -> Response:
        notation = self._notation()
        ended = self._sessions.settlements[::-1]
        body = [
            lead("A session is one signed payment that serves many calls, and is settled once, for what they cost."),
            section("Open", payment_pages.sessions_table(self._sessions.views, notation)),
            section("Ended", payment_pages.settlements_table(ended[: 4 * _PAGE], notation)),
            note("These are the gateway's words. What the chain shows is under ", link("/payments", "Payments"), "."),
        ]
        return self._page("Sessions", *body, here="/sessions")

    def _data(self, _request: Request) -> Response:
        records = self._reader.data_records()
        body = [
            lead("What was asked and answered, as hashes on chain: single calls, and batches under a Merkle root."),
            payment_pages.data_table(records[: 4 * _PAGE], self._notation()),
        ]
        return self._page("Data settlements", *body, here="/data")

    def _blob(self, request: Request) -> Response:
        blob_id = request.path_params["blob_id"]
        stored = self._blobs.get(blob_id)
        if stored is None:
            return self._missing("blob", blob_id, "This devnet keeps blobs in memory, and only its own.")
        records = [record for record in self._reader.data_records() if record.blob_id == blob_id]
        body = payment_pages.blob_body(blob_id, json.loads(stored), self._notation(), records=records)
        return self._page("Blob", body, here="/data")

    # --- search --------------------------------------------------------------------------------------------

    def _find(self, request: Request) -> Response:
        query = request.query_params.get("q", "")
        hits = self._search.find(query)
        if len({hit.path for hit in hits}) == 1:
            return RedirectResponse(f"{BASE}{quote(hits[0].path)}", status_code=303, headers=_HEADERS)
        rows: list[Sequence[Node]] = [[hit.meaning, link(hit.path, hit.path)] for hit in hits]
        found = table(["It is", "Page"], rows, empty="Nothing here has that name.")
        hint = note(
            "The search knows transaction and block hashes, block numbers, addresses, nonces of signed payments, "
            "Merkle roots, ids of calls, request and output hashes, enclave ids, blob ids, and marks of open sessions."
        )
        if query.strip().startswith("call_"):
            hint = note(
                "This gateway has answered no call with this id, or does not remember it: it was started again, or the "
                "client did not send the id. ",
                element("code", f"opengradient-x402 receipts show {query.strip()} --full"),
                " shows the transaction of the payment and the request hash. Search for these.",
            )
        status = 200 if hits else 404
        return self._page("Search", found, None if hits else hint, query=query, status=status, here=None)

    # --- frame ---------------------------------------------------------------------------------------------

    def _style_sheet(self, _request: Request) -> Response:
        return Response(self._style, media_type="text/css", headers={"x-content-type-options": "nosniff"})

    def _notation(self) -> Notation:
        return Notation(now_s=self._reader.now_s(), labels=self._labels)

    def _missing(self, kind: str, named: str, why: str | None = None) -> Response:
        body = note(f"There is no {kind} ", element("code", named), " on this chain. ", why, tone="bad")
        return self._page("Not found", body, status=404, here=None)

    def _page(self, title: str, *body: Node, here: str | None, query: str = "", status: int = 200) -> Response:
        content = page(title, *body, chain_id=self._chain_id, here=here, query=query)
        return Response(content, status_code=status, media_type="text/html", headers=_HEADERS)


def _whole(text: str | None, *, default: int) -> int:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else default
