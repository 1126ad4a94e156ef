"""The paid gateway: HTTP requests for chat completions come in; paid, signed answers go out.

`gateway` has the routes, `service` answers a call; `intake` reads requests, `answers` and `event_stream` write
responses. `payment/` decides who may call and collects the money, `proofs/` signs answers and anchors them on chain.
"""
