"""`opengradient-x402 demo`: a stranger's first minute, on an embedded network."""

from langchain_opengradient.demo.command import demo

__all__ = ["demo"]
