"""The explorer: pages on which a person can read the devnet's chain, payments, sessions and data settlements.

Paths are those of etherscan's family (`/tx/…`, `/address/…`, `/block/…`), so `explorer_url` of a network works the
same for Base and for the devnet. Plain HTML, one style sheet, no script.

`routes` serves; `reader` asks the chain, `settle_calls` decodes payments, `search` finds; `chain_pages`,
`payment_pages`, `layout` and `notation` show; `markup` escapes.
"""
