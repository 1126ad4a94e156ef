"""A question goes out, an answer comes back."""
