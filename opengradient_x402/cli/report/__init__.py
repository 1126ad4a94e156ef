"""The report of an auditor: figures out of receipts and findings, as a page, a table or Markdown."""
