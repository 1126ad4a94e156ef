"""How a call is paid: the 402 challenge, the door, sessions, and the settlement of what was used.

`challenge` writes offers and reads payments, `door` admits a call, `sessions` adds up its cost, `collector` asks the
facilitator to settle.
"""
