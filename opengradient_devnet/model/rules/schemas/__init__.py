"""Fills in JSON schemas with the facts of a prompt."""
