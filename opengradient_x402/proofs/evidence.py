"""What sources answered, kept so that one check runs live, and again from a file.

`AskedOnce` sources keep answers for one audit; `Recorded` sources also note them; `Replayed` sources give noted answers
alone. What was not noted is an RpcError or a missing blob, which a check must treat as "not known". Answers are not
judged here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, Final

from opengradient_x402.chain.node import Place, RpcRequest
from opengradient_x402.chain.sources import Document, Source, Sources
from opengradient_x402.effects import Steps
from opengradient_x402.errors import RpcError
from opengradient_x402.proofs.bundle import Record, canonical_json, read_json

_RPC: Final = "rpc"
_BLOB: Final = "blob"
_SOURCE: Final = "source"


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
        """Keeps what a node answered. Answers with numbers that languages read differently are left out."""
        body = {"chain_id": chain_id, "method": request.method, "params": list(request.params), "result": result}
        try:
            read_json(canonical_json(body))
        except ValueError:
            return
        self._add(Record(_RPC, body))

    def note_blob(self, blob_id: str, content: bytes) -> None:
        """Keeps a blob."""
        self._add(Record(_BLOB, {"blob_id": blob_id, "content_base64": base64.b64encode(content).decode("ascii")}))

    def note_source(self, chain_id: int, source: Source) -> None:
        """Keeps by whom, and at which block, a chain was read."""
        body = {"chain_id": chain_id, "node": source.name}
        self._add(Record(_SOURCE, body | {"block_number": source.block_number, "block_hash": source.block_hash}))

    def result(self, chain_id: int, request: RpcRequest) -> Any:
        """What a node answered. Raises RpcError when that was not noted."""
        record = self._records.get(_rpc_key(chain_id, request.method, request.params))
        if record is None:
            raise RpcError(f"The bundle has no answer of chain {chain_id} to {request.method}.")
        return record.body["result"]

    def blob(self, blob_id: str) -> Document:
        """The blob, if it was noted."""
        record = self._records.get((_BLOB, blob_id))
        if record is None:
            return Document(problem="it is not in the bundle")
        return Document(content=base64.b64decode(record.body["content_base64"], validate=True))

    def source(self, chain_id: int) -> Source:
        """By whom a chain was read. Raises RpcError when that was not noted."""
        record = self._records.get((_SOURCE, str(chain_id)))
        if record is None:
            raise RpcError(f"The bundle does not say at which block chain {chain_id} was read.")
        name, number, place = (record.body[name] for name in ("node", "block_number", "block_hash"))
        return Source(name=f"{name}, as the file says", block_number=number, block_hash=place)

    def _add(self, record: Record) -> None:
        if record.kind == _RPC:
            key = _rpc_key(record.body["chain_id"], record.body["method"], record.body["params"])
        elif record.kind == _BLOB:
            key = (_BLOB, record.body["blob_id"])
        elif record.kind == _SOURCE:
            key = (_SOURCE, str(record.body["chain_id"]))
        else:
            return
        self._records[key] = record


class AskedOnce(Sources):
    """Live sources that are asked each question once: all statements of an audit rest on the same answers."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[tuple[object, ...], Any] = {}

    def request(self, place: Place, request: RpcRequest) -> Steps[Any]:
        """See `Sources.request`."""
        key = (*self._key(place), *_rpc_key(place.chain_id, request.method, request.params))
        if key not in self._answers:
            self._answers[key] = yield from super().request(place, request)
        return self._answers[key]


class Recorded(AskedOnce):
    """Live sources whose answers are noted as evidence."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self._evidence = evidence

    def request(self, place: Place, request: RpcRequest) -> Steps[Any]:
        """See `Sources.request`."""
        result = yield from super().request(place, request)
        self._evidence.note_result(place.chain_id, request, result)
        return result

    def source(self, place: Place) -> Steps[Source]:
        """See `Sources.source`."""
        source = yield from super().source(place)
        self._evidence.note_source(place.chain_id, source)
        return source

    def blob(self, store: str, blob_id: str) -> Steps[Document]:
        """See `Sources.blob`."""
        document = yield from super().blob(store, blob_id)
        if document.problem is None:
            self._evidence.note_blob(blob_id, document.content)
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

    def source(self, place: Place) -> Steps[Source]:
        """See `Sources.source`."""
        yield from ()
        return self._evidence.source(place.chain_id)

    def blob(self, store: str, blob_id: str) -> Steps[Document]:  # noqa: ARG002  (what is in the file has no store)
        """See `Sources.blob`."""
        yield from ()
        return self._evidence.blob(blob_id)


def _rpc_key(chain_id: int, method: str, params: Any) -> tuple[str, ...]:
    return (_RPC, str(chain_id), method, canonical_json(list(params)).decode())
