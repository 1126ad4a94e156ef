"""The TEE registry's answers, from ABI bytes to plain values (Solidity contract ABI specification, "Encoding").

Read by hand, as `chain` does: one struct does not need a library. Every offset and length is checked against
the bytes that are there. Does not know what the fields mean.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

GET_ACTIVE_TEES: Final = "0x4b6014da"  # getActiveTEEs(uint8)
GET_TEE: Final = "0x418b207d"  # getTEE(bytes32)

_WORD: Final = 32
_MOST_ENTRIES: Final = 1024
_LONGEST_VALUE: Final = 16 * 1024
"""Offsets may overlap: without limits, a small answer could ask for a huge amount of memory."""


class TeeFields(NamedTuple):
    """The struct `TEEInfo` without its last member (oblivious HTTP keys, which this package does not use)."""

    owner: str
    payment_address: str
    endpoint: str
    public_key_der: bytes
    certificate_der: bytes
    pcr_hash: bytes
    tee_type: int
    is_enabled: bool
    registered_at: int
    last_heartbeat_at: int


def decode_tee(data: bytes) -> TeeFields:
    """One struct, as `getTEE` returns it. Raises ValueError for bytes that are no such answer."""
    return _tee(_Region(data).at_offset(0))


def decode_tees(data: bytes) -> list[TeeFields]:
    """An array of structs, as `getActiveTEEs` returns it. Raises ValueError for bytes that are no such answer."""
    array = _Region(data).at_offset(0)
    count = array.number(0)
    entries = array.after(1)
    if count > _MOST_ENTRIES:
        raise ValueError(f"it claims {count} entries")
    return [_tee(entries.at_offset(index)) for index in range(count)]


def _tee(struct: _Region) -> TeeFields:
    return TeeFields(
        owner=struct.address(0),
        payment_address=struct.address(1),
        # A broken name is no reason to lose the other entries: it ends as an endpoint that nobody can reach.
        endpoint=struct.content(2).decode("utf-8", "replace"),
        public_key_der=struct.content(3),
        certificate_der=struct.content(4),
        pcr_hash=struct.word(5),
        tee_type=struct.number(6),
        is_enabled=struct.number(7) == 1,
        registered_at=struct.number(8),
        last_heartbeat_at=struct.number(9),
    )


class _Region:
    """Words of an encoding, counted from where its offsets count from."""

    __slots__ = ("_data", "_start")

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._data = data
        self._start = start

    def require(self, start: int, length: int) -> None:
        if start + length > len(self._data) - self._start:
            raise ValueError(f"the answer ends after {len(self._data)} bytes, within a value")

    def word(self, index: int) -> bytes:
        self.require(index * _WORD, _WORD)
        start = self._start + index * _WORD
        return self._data[start : start + _WORD]

    def number(self, index: int) -> int:
        return int.from_bytes(self.word(index), "big")

    def address(self, index: int) -> str:
        word = self.word(index)
        if any(word[:12]):
            raise ValueError(f"word {index} of the entry is not an address")
        return "0x" + word[12:].hex()

    def after(self, index: int) -> _Region:
        return _Region(self._data, self._start + index * _WORD)

    def at_offset(self, index: int) -> _Region:
        offset = self.number(index)
        self.require(offset, _WORD)
        return _Region(self._data, self._start + offset)

    def content(self, index: int) -> bytes:
        region = self.at_offset(index)
        length = region.number(0)
        if length > _LONGEST_VALUE:
            return b""  # as for a broken name: this entry becomes unusable, and the others are not lost
        region.require(_WORD, length)
        start = region._start + _WORD
        return self._data[start : start + length]


def hex_bytes(value: Any) -> bytes:
    """The bytes of `0x…` text. Raises ValueError for anything else."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("not 0x-hex text")
    return bytes.fromhex(value[2:])
