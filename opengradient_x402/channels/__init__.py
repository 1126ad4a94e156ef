"""Payment channels (x402 batch-settlement): one deposit, and a voucher for each call."""
