"""HTTP below the payment: time limits of a call, and aiohttp as a transport of httpx."""
