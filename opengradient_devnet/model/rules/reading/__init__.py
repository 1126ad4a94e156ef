"""Reads a request: its words, clauses, layout, conversation, facts and tools."""
