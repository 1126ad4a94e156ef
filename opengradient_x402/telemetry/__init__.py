"""What an operator sees: events and log lines, metrics, and attributes of spans (docs/how-to/monitoring.md)."""
