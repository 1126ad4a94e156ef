"""Keys that people have go in; signatures of their wallets come out."""
