"""How a call is paid: the 402 challenge, the door, sessions, and the settlement of what was used."""
