"""What proves an answer: the enclave's signature, its certificate and registry entry, and the data settlement.

`tee` signs and `forgery` signs wrongly; `certificates` and `registry` publish the enclave; `batches` and `merkle`
anchor answers on chain.
"""
