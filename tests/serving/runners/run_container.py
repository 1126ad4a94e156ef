"""uvicorn where a container would have it: a root that cannot be written, no passwd, no HOME, one volume."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import shlex

import driving

volume = driving.TASK["folder"]
inside = (
    f"mount --bind {shlex.quote(volume)} {shlex.quote(volume)} && mount --bind /dev/null /etc/passwd "
    '&& mount -o remount,bind,ro / && cd / && unset HOME && ! touch /written 2>/dev/null && exec "$@"'
)
port = driving.free_port()
with driving.started(
    *("uvicorn", "web_app:app", "--workers=2", "--log-level=warning", f"--port={port}"),
    prefix=("unshare", "--mount", "--propagation=private", "sh", "-c", inside, "container"),
    env={"PYTHONDONTWRITEBYTECODE": "1"},
) as server:
    driving.wait_for(driving.listens(port))
    seen = driving.ask_all(driving.asks_of_web(port), meanwhile=driving.killer(server.pid, at=(50,)))
driving.answer(seen["calls"], broken=seen["broken"])
