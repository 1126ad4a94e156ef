"""Tasks for Celery; broker and results are folders."""

import os
import signal
from pathlib import Path

from celery import Celery

from langchain_opengradient import ChatOpenGradient

folder = Path(os.environ["APP_FOLDER"])
for name in ("queue", "results", "control"):
    (folder / name).mkdir(exist_ok=True)
app = Celery("tasks", broker="filesystem://", backend=f"file://{folder / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(folder / "queue"),
    "data_folder_out": str(folder / "queue"),
    "control_folder": str(folder / "control"),
}
model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)


@app.task
def ask(question: str) -> str:
    return model.invoke(question).response_metadata["opengradient"]["call_id"]


@app.task
def die(question: str) -> None:
    """Its answer is given to nobody."""
    model.invoke(question)
    os.kill(os.getpid(), signal.SIGKILL)
