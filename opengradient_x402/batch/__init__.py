"""Tables of prompts in, tables of answers out: a list, a pandas DataFrame, or Ray Data on a cluster."""
