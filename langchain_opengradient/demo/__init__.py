"""`opengradient-x402 demo`: a tour for new users, on an embedded network."""

from langchain_opengradient.demo.command import demo

__all__ = ["demo"]
