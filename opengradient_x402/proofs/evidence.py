"""What sources answered, kept so that one check runs live, and again from a file.

`Recorded` sources note every answer that they give; `Replayed` sources give noted answers alone. What was not noted
is an RpcError or a missing document, which a check must treat as "not known". Answers are not judged here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from opengradient_x402.chain.node import Place, RpcRequest
from opengradient_x402.chain.sources import Document, Sources
from opengradient_x402.effects import Steps
from opengradient_x402.errors import RpcError
from opengradient_x402.proofs.bundle import Record

RPC = "rpc"
DOCUMENT = "document"


class Evidence:
    """Answers of chains and of blob stores, by what was asked."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: dict[tuple[str, ...], Record] = {}
        for record in records:
            self._add(record)

    @property
    def records(self) -> list[Record]:
        """Everything noted, in the order in which it was first asked for."""
        return list(self._records.values())

    def note_result(self, chain_id: int, request: RpcRequest, result: Any) -> None:
        """Keeps what a node answered."""
        body = {"chain_id": chain_id, "method": request.method, "params": list(request.params), "result": result}
        self._add(Record(RPC, json.loads(json.dumps(body))))

    def note_document(self, url: str, content: bytes) -> None:
        """Keeps a document."""
        self._add(Record(DOCUMENT, {"url": url, "content_base64": base64.b64encode(content).decode("ascii")}))

    def result(self, chain_id: int, request: RpcRequest) -> Any:
        """What a node answered. Raises RpcError when that was not noted."""
        record = self._records.get(_rpc_key(chain_id, request.method, request.params))
        if record is None:
            raise RpcError(f"The bundle has no answer of chain {chain_id} to {request.method}.")
        return record.body["result"]

    def document(self, url: str) -> Document:
        """The document, if it was noted."""
        record = self._records.get((DOCUMENT, url))
        if record is None:
            return Document(problem="it is not in the bundle")
        return Document(content=base64.b64decode(record.body["content_base64"], validate=True))

    def _add(self, record: Record) -> None:
        if record.kind == RPC:
            key = _rpc_key(record.body["chain_id"], record.body["method"], record.body["params"])
        elif record.kind == DOCUMENT:
            key = (DOCUMENT, record.body["url"])
        else:
            return
        self._records[key] = record


class Recorded(Sources):
    """Live sources whose answers are noted as evidence."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self._evidence = evidence

    def request(self, place: Place, request: RpcRequest) -> Steps[Any]:
        """See `Sources.request`."""
        result = yield from super().request(place, request)
        self._evidence.note_result(place.chain_id, request, result)
        return result

    def document(self, url: str) -> Steps[Document]:
        """See `Sources.document`."""
        document = yield from super().document(url)
        if document.problem is None:
            self._evidence.note_document(url, document.content)
        return document


class Replayed(Sources):
    """Sources that ask nobody: evidence is all that they know."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self._evidence = evidence

    def request(self, place: Place, request: RpcRequest) -> Steps[Any]:
        """See `Sources.request`."""
        yield from ()
        return self._evidence.result(place.chain_id, request)

    def document(self, url: str) -> Steps[Document]:
        """See `Sources.document`."""
        yield from ()
        return self._evidence.document(url)


def _rpc_key(chain_id: int, method: str, params: Any) -> tuple[str, ...]:
    return (RPC, str(chain_id), method, json.dumps(list(params), sort_keys=True))
