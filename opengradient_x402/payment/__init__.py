"""Who may be paid, and the signature that pays."""
