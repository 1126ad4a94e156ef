"""The x402 facilitator: signed payments come in, are checked, and go out as transactions on the chain."""
