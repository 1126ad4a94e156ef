"""Writes an answer: tool calls, selections, answers from given text, plain sentences."""
