"""The x402 facilitator: signed payments come in, are checked, and go out as transactions on the chain.

`api` is its HTTP face, `facilitator` verifies and settles. `checks` decides whether a payment is good, with the
modules `permit2` and `eip3009` for the two ways to pay.
"""
