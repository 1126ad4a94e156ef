"""What a call costs, side by side: our faces, paid, and others, free. `uv run python -m benchmarks --help`."""
