"""The chain: an Ethereum node in this process, or anvil, with JSON-RPC over HTTP and funded accounts."""
