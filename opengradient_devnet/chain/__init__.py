"""The chain: an Ethereum node in this process, or anvil, with JSON-RPC over HTTP and funded accounts.

`chain` is what all others use; `pyevm` and `anvil` are its two engines, `accounts` makes wallets, and `rpc` serves
it. The other modules are the parts of `pyevm`: `evm` executes, `blocks` and `logs` store, `methods`, `parameters`
and `calls` answer JSON-RPC.
"""
