"""Questions to a chain's node, and its answers as values."""
