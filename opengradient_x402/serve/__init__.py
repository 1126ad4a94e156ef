"""An OpenAI-compatible server: requests of any OpenAI client in, paid answers and their receipts out."""
