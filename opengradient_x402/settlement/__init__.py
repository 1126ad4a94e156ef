"""What became of an authorization on chain, written into the ledger."""
