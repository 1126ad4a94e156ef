"""HTTP below the payment: connections for threads and for event loops, and the time limits of a call."""
