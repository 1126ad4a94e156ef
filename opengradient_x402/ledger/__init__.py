"""What was signed, called and paid: authorizations, calls, receipts."""
