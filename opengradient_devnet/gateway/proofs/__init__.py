"""What proves an answer: the enclave's signature, its certificate and registry entry, and the data settlement."""
