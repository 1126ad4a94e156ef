"""uvicorn with two workers, one of which is killed twice."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import driving

port = driving.free_port()
with driving.started("uvicorn", "web_app:app", "--workers=2", f"--port={port}", "--log-level=warning") as server:
    driving.wait_for(driving.listens(port))
    seen = driving.ask_all(driving.asks_of_web(port), meanwhile=driving.killer(server.pid, at=(30, 60)))
driving.answer(seen["calls"], broken=seen["broken"])
