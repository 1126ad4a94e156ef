"""Keeping what a lookup was told, and telling it the same again: how one check runs live, and from a file.

`recorded` notes every answer that a lookup gets; `replayed` runs a lookup on noted answers alone. What was not
noted is an RpcError or a missing document, which the lookup must take for "not known". Does not judge answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterable
from typing import Any, TypeVar, assert_never

from opengradient_x402.chain.lookups import AskChain, Await, Document, Download, Lookup, Need, Sleep
from opengradient_x402.chain.node import Pause, Question, RpcRequest
from opengradient_x402.driving import drive
from opengradient_x402.errors import ChainUnavailable, RpcError
from opengradient_x402.proofs.bundle import Record

T = TypeVar("T")
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

    def recorded(self, lookup: Lookup[T]) -> Lookup[T]:
        """The same lookup, with every answer noted here."""
        return _intercepted(lookup, self._noting)

    def replayed(self, lookup: Lookup[T]) -> T:
        """The lookup's answer from what is noted here; nothing is asked of anybody."""
        return drive(lookup, self._answer)

    def _noting(self, need: Need) -> Lookup[Any]:
        match need:
            case AskChain():
                question = self._listening(need.question, need.chain_id)
                return (yield AskChain(question=question, rpc_url=need.rpc_url, chain_id=need.chain_id))
            case Download(url):
                document: Document = yield need
                if document.problem is None:
                    content = base64.b64encode(document.content).decode("ascii")
                    self._add(Record(DOCUMENT, {"url": url, "content_base64": content}))
                return document
            case Await() | Sleep():
                return (yield need)
            case _:
                assert_never(need)

    def _listening(self, question: Question[T], chain_id: int) -> Question[T]:
        def note(request: RpcRequest, result: Any) -> None:
            body = {"chain_id": chain_id, "method": request.method, "params": list(request.params), "result": result}
            self._add(Record(RPC, json.loads(json.dumps(body))))

        return _overheard(question, note)

    def _answer(self, need: Need) -> Any:
        match need:
            case AskChain():
                chain_id = need.chain_id
                return drive(need.question, lambda effect: self._result(chain_id, effect))
            case Download(url):
                record = self._records.get((DOCUMENT, url))
                if record is None:
                    return Document(problem="it is not in the bundle")
                return Document(content=base64.b64decode(record.body["content_base64"], validate=True))
            case Await(future):
                return future.result()
            case Sleep():
                return None
            case _:
                assert_never(need)

    def _result(self, chain_id: int, effect: RpcRequest | Pause) -> Any:
        if isinstance(effect, Pause):
            return None
        record = self._records.get(_rpc_key(chain_id, effect.method, effect.params))
        if record is None:
            raise RpcError(f"The bundle has no answer of chain {chain_id} to {effect.method}.")
        return record.body["result"]

    def _add(self, record: Record) -> None:
        if record.kind == RPC:
            key = _rpc_key(record.body["chain_id"], record.body["method"], record.body["params"])
        elif record.kind == DOCUMENT:
            key = (DOCUMENT, record.body["url"])
        else:
            return
        self._records[key] = record


def _rpc_key(chain_id: int, method: str, params: Any) -> tuple[str, ...]:
    return (RPC, str(chain_id), method, json.dumps(list(params), sort_keys=True))


def _intercepted(lookup: Lookup[T], intercept: Any) -> Lookup[T]:
    try:
        need = next(lookup)
        while True:
            try:
                answer = yield from intercept(need)
            except ChainUnavailable as exc:
                need = lookup.throw(exc)
            else:
                need = lookup.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result


def _overheard(question: Question[T], note: Any) -> Generator[RpcRequest | Pause, Any, T]:
    try:
        effect = next(question)
        while True:
            try:
                result = yield effect
            except ChainUnavailable as exc:
                effect = question.throw(exc)
                continue
            if isinstance(effect, RpcRequest):
                note(effect, result)
            effect = question.send(result)
    except StopIteration as done:
        answer: T = done.value
        return answer
