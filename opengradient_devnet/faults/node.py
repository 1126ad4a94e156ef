"""What a node can do wrong that is asked over JSON-RPC (`/rpc`); the devnet's own parts ask the chain itself.

`method` is the JSON-RPC method that fails (None: all); of a batch, one request with it is enough.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LagNode:
    """Answer as a node that has not seen the last blocks: heads, states, receipts and logs are those before them."""

    blocks: int
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Answer with this instead of JSON-RPC: a rate limit (429), a bad gateway (502) in HTML, a page with 200."""

    status: int
    body: str = ""
    content_type: str = "text/html"
    retry_after_s: int | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNull:
    """Answer with the result null, as nodes do about what they have not seen yet, and broken ones about anything."""

    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeError:
    """Answer with a JSON-RPC error (-32005 is both "limit exceeded" and "too many results"); some add a null result."""

    code: int
    message: str
    has_null_result: bool = False
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCut:
    """Cut the JSON of an answer in half: with a length that agrees, or by dropping the connection in the middle."""

    cuts_connection: bool = False
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrip:
    """Send an answer byte by byte, with this pause between them."""

    pace_s: float
    method: str | None = None
