"""The paid gateway: HTTP requests for chat completions come in, paid and proven answers go out."""
