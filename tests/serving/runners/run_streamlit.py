"""Streamlit: each visitor is a session over a web socket, and some leave in the middle of an answer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import asyncio
import re

import driving
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import connect

port = driving.free_port()
CALL = re.compile(r"call_[0-9a-f]{24}")


async def visit(*, leaves_early: bool) -> str | None:
    rerun = BackMsg()
    rerun.rerun_script.query_string = ""
    async with connect(f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=["streamlit"], max_size=None) as line:
        await line.send(rerun.SerializeToString())
        call_id, deltas = None, 0
        while True:
            message = ForwardMsg()
            message.ParseFromString(await asyncio.wait_for(line.recv(), 60))
            kind = message.WhichOneof("type")
            if kind == "delta":
                deltas += 1
                if leaves_early and deltas > 2:
                    return None
                if found := CALL.search(str(message.delta)):
                    call_id = found[0]
            if kind == "script_finished":
                return call_id


async def visit_all() -> list[str]:
    seats = asyncio.Semaphore(6)

    async def one(number: int) -> str | None:
        async with seats:
            if number % 25 == 10:
                await visit(leaves_early=True)
            return await visit(leaves_early=False)

    return list(await asyncio.gather(*[one(n) for n in range(driving.TASK["calls"])]))


with driving.started(
    *(
        "streamlit",
        "run",
        str(Path(__file__).parent / "streamlit_page.py"),
        f"--server.port={port}",
        "--server.headless=true",
    ),
    *("--browser.gatherUsageStats=false", "--server.fileWatcherType=none"),
):
    driving.wait_for(driving.listens(port))
    calls = asyncio.run(visit_all())
driving.answer(calls, killed=4)
