"""Nodes that show the chain through JSON-RPC: up to date, behind, on an abandoned fork, two behind one URL, broken."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from opengradient_x402.addresses import address_word
from opengradient_x402.channels.events import CLAIMED
from opengradient_x402.networks import Network
from opengradient_x402.settlement.recognition import AUTHORIZATION_USED, SETTLED, TRANSFER
from simulation.chain import Chain, Settlement, View
from simulation.contract import ChannelEvent

MULTICALL3 = "0xca11bde05977b3631167028862be2a173976ca11"
CHANNELS = "0x4020074e9df2ce1dee5a9c1b5c3f541d02a10003"
_BALANCE = 10**27
_CREATION = "0x4260005260206000f3"  # returns the time of its block


@dataclass(slots=True)
class Weather:
    """How the nodes behind the URL are today."""

    lag: int = 0
    other_lag: int | None = None
    """The second node behind the same URL; None when there is one node only."""
    is_on_old_fork: bool = False
    faults: float = 0.0


class Nodes:
    """What answers at the network's `rpc_url`."""

    def __init__(self, chain: Chain, network: Network, payer: str, rng: random.Random) -> None:
        self.weather = Weather()
        self._chain = chain
        self._network = network
        self._payer = payer
        self._rng = rng
        self._token = network.asset.address.lower()

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The response to one JSON-RPC request, or how the line broke."""
        if self.weather.faults and self._rng.random() < self.weather.faults:
            return self._broken(request)
        asked = json.loads(request.content)
        try:
            result: dict[str, Any] = {"result": self._result(self._view(), asked["method"], asked["params"])}
        except KeyError as exc:
            result = {"error": {"code": -32000, "message": f"{exc} is not known here"}}
        return _response(request, {"jsonrpc": "2.0", "id": asked["id"], **result})

    def _view(self) -> View:
        weather, lag = self.weather, self.weather.lag
        if weather.other_lag is not None and self._rng.random() < 0.5:
            lag = weather.other_lag
        elif weather.is_on_old_fork and self._chain.abandoned is not None:
            return self._chain.abandoned
        return self._chain.view(lag)

    def _broken(self, request: httpx.Request) -> httpx.Response:
        match self._rng.randrange(6):
            case 0:
                raise httpx.ConnectError("refused")
            case 1:
                raise httpx.ReadTimeout("silent")
            case 2:
                return httpx.Response(502, content=b"<html>Bad gateway</html>", request=request)
            case 3:
                return _response(request, {"jsonrpc": "2.0", "id": 1, "result": None})
            case 4:
                return _response(request, {"jsonrpc": "2.0", "id": 1, "error": {"code": -32005, "message": "limit"}})
            case _:
                return httpx.Response(200, content=b'{"jsonrpc": "2.0", "resu', request=request)

    def _result(self, view: View, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_chainId":
                return hex(self._network.chain_id)
            case "eth_call":
                return self._called(_at(view, params[1]), params[0])
            case "eth_getBlockByNumber":
                return _block(view, view.head if params[0] == "latest" else int(params[0], 16))
            case "eth_getLogs":
                return list(self._found(view, params[0]))
            case "eth_getTransactionByHash":
                done = view.transaction(params[0])
                return None if done is None else {"hash": done.hash, "input": "0x" + _calldata(done, self._token).hex()}
            case "eth_getTransactionReceipt":
                done = view.transaction(params[0])
                return (
                    None
                    if done is None
                    else {
                        "transactionHash": done.hash,
                        "blockNumber": hex(done.number),
                        "blockHash": view.hash_of(done.number),
                        "status": "0x1",
                        "logs": list(self._logs(view, done)),
                    }
                )
        raise KeyError(method)

    def _called(self, view: View, call: dict[str, Any]) -> str:
        if "to" not in call:
            assert call["data"] == _CREATION
            return _word(view.time_of(view.head))
        data = bytes.fromhex(call["data"][2:])
        if call["to"].lower() == MULTICALL3:
            return self._together(view, data)
        if call["to"].lower() == CHANNELS:
            return "0x" + b"".join(word.to_bytes(32, "big") for word in _channel(view, data)).hex()
        return _word(self._read(view, data))

    def _read(self, view: View, data: bytes) -> int:
        selector, arguments = data[:4].hex(), data[4:]
        match selector:
            case "4fe02b44":  # nonceBitmap(address,uint256)
                word = int.from_bytes(arguments[32:64], "big")
                return sum(1 << (nonce & 255) for nonce in view.used_nonces("permit2") if nonce >> 8 == word)
            case "e94a0102":  # authorizationState(address,bytes32)
                return int(int.from_bytes(arguments[32:64], "big") in view.used_nonces("eip3009"))
            case "70a08231":  # balanceOf(address)
                return _BALANCE
            case "dd62ed3e":  # allowance(address,address)
                return 2**256 - 1
            case "0f28c97d":  # getCurrentBlockTimestamp()
                return view.time_of(view.head)
            case "ee82ac5e":  # getBlockHash(uint256)
                number = int.from_bytes(arguments[:32], "big")
                return int(view.hash_of(number), 16) if view.head - 256 <= number < view.head else 0
        raise KeyError(selector)

    def _together(self, view: View, data: bytes) -> str:
        """tryBlockAndAggregate(bool,(address,bytes)[]) -> (uint256, bytes32, (bool,bytes)[])."""
        arguments = data[4:]
        listed = _int(arguments, 32)
        count, first = _int(arguments, listed), listed + 32
        words = []
        for index in range(count):
            entry = first + _int(arguments, first + 32 * index)
            size = _int(arguments, entry + 64)
            words.append(self._read(view, arguments[entry + 96 : entry + 96 + size]))
        entries = b"".join(b"".join(part.to_bytes(32, "big") for part in (1, 64, 32, word)) for word in words)
        offsets = b"".join((32 * count + 128 * index).to_bytes(32, "big") for index in range(count))
        head = b"".join(part.to_bytes(32, "big") for part in (view.head, 0, 96, count))
        return "0x" + (head + offsets + entries).hex()

    def _found(self, view: View, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        start, end = int(query["fromBlock"], 16), min(view.head, int(query["toBlock"], 16))
        if query["address"].lower() == CHANNELS:
            claims = (_claimed(view, event, amount) for event, amount in view.claims() if start <= event.number <= end)
            yield from (log for log in claims if _fits(log["topics"], query["topics"]))
            return
        for done in view.mined:
            if start <= done.number <= end:
                for log in self._logs(view, done):
                    if log["address"].lower() == query["address"].lower() and _fits(log["topics"], query["topics"]):
                        yield log

    def _logs(self, view: View, done: Settlement) -> Iterator[dict[str, Any]]:
        signature, payer = done.signature, "0x" + address_word(self._payer).hex()
        events = [
            (self._token, [TRANSFER, payer, "0x" + address_word(signature.payee).hex()], _word(done.amount_atomic))
        ]
        if signature.method == "eip3009":
            events.insert(0, (self._token, [AUTHORIZATION_USED, payer, f"0x{signature.nonce:064x}"], "0x"))
        else:
            events.append((signature.spender, [SETTLED], "0x"))
        for index, (address, topics, data) in enumerate(events):
            yield {
                "address": address,
                "topics": topics,
                "data": data,
                "blockNumber": hex(done.number),
                "blockHash": view.hash_of(done.number),
                "transactionHash": done.hash,
                "logIndex": hex(index),
            }


def _claimed(view: View, event: ChannelEvent, amount_atomic: int) -> dict[str, Any]:
    return {
        "address": CHANNELS,
        "topics": [CLAIMED, event.channel_id, "0x" + "0" * 64],
        "data": f"0x{amount_atomic:064x}{event.amount_atomic:064x}",
        "blockNumber": hex(event.number),
        "blockHash": view.hash_of(event.number),
        "transactionHash": event.hash,
        "logIndex": "0x0",
    }


def _calldata(done: Settlement, token: str) -> bytes:
    signature = done.signature
    words = (signature.amount_atomic, signature.nonce, signature.deadline, done.amount_atomic)
    return b"\x12\x34\x56\x78" + address_word(token) + b"".join(word.to_bytes(32, "big") for word in words)


def _at(view: View, tag: Any) -> View:
    """The view at the block that a call is pinned to."""
    if tag == "latest":
        return view
    number = view.numbered(tag["blockHash"]) if isinstance(tag, dict) else int(tag, 16)
    if number is None or number > view.head:
        raise KeyError("the block")
    return View(view.genesis_s, number, view.mined, view.salts, view.hashes, view.channel_events)


def _channel(view: View, data: bytes) -> tuple[int, int]:
    state = view.channel("0x" + data[4:].hex())
    match data[:4].hex():
        case "7a7ebd7b":  # channels(bytes32)
            return state.balance_atomic, state.claimed_atomic
        case "b7f06ebe":  # pendingWithdrawals(bytes32)
            return state.withdrawing_atomic, state.withdrawing_since
    raise KeyError(data[:4].hex())


def _block(view: View, number: int) -> dict[str, Any] | None:
    if not 0 <= number <= view.head:
        return None
    return {
        "number": hex(number),
        "hash": view.hash_of(number),
        "parentHash": view.hash_of(number - 1) if number else "0x" + "0" * 64,
        "timestamp": hex(view.time_of(number)),
    }


def _fits(topics: list[str], wanted: list[Any]) -> bool:
    if len(topics) < len(wanted):
        return False
    return all(
        want is None or topic in ([want] if isinstance(want, str) else want)
        for topic, want in zip(topics, wanted, strict=False)
    )


def _int(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 32], "big")


def _word(value: int) -> str:
    return f"0x{value:064x}"


def _response(request: httpx.Request, document: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(document).encode(), request=request)
