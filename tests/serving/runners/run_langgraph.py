"""`langgraph dev`, which is ended and started again in the middle."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import json
import shutil

import driving
import httpx

folder = Path(driving.TASK["folder"])
shutil.copy(Path(__file__).parent / "langgraph_app.py", folder)
(folder / "langgraph.json").write_text(
    json.dumps({"dependencies": ["."], "graphs": {"agent": "./langgraph_app.py:graph"}})
)
wanted, calls = driving.TASK["calls"], []
for part in (wanted // 2, wanted - wanted // 2):
    port = driving.free_port()
    driving.TASK["calls"] = part
    with driving.started(
        "langgraph", "dev", "--no-browser", "--no-reload", f"--port={port}", env={"LANGSMITH_TRACING": "false"}
    ):
        driving.wait_for(driving.listens(port), timeout_s=90)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

        def ask(number: int, client: httpx.Client = client) -> str:
            message = {"role": "user", "content": f"Say {number}."}
            run = {"assistant_id": "agent", "input": {"messages": [message]}}
            state = client.post("/runs/wait", json=run).raise_for_status().json()
            return state["messages"][-1]["response_metadata"]["opengradient"]["call_id"]

        calls += driving.ask_all(ask)["calls"]
driving.answer(calls)
