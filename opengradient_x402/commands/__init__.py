"""The commands of `opengradient-x402`, one module each.

A module imports only typer and `options` at its top; the work is imported when it is asked for, so that `--help`
stays quick. Errors of the package are left to `cli`, which turns them into messages and exit codes.
"""
