"""What an enclave, an audit bundle and a blob prove."""
