"""gunicorn with a preloaded application: workers that end after 20 requests, and one that is killed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import driving
import httpx

port = driving.free_port()
with driving.started(
    "gunicorn", "wsgi_app:app", "--preload", "--workers=2", "--max-requests=20", f"--bind=127.0.0.1:{port}"
) as server:
    driving.wait_for(driving.listens(port))
    first = httpx.get(f"http://127.0.0.1:{port}/first", timeout=60).json()["call_id"]
    seen = driving.ask_all(driving.asks_of_web(port), meanwhile=driving.killer(server.pid, at=(50,)))
driving.answer([first, *seen["calls"]], broken=seen["broken"])
