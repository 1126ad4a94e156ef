"""Jobs for RQ: each runs in a process that leaves by os._exit."""

import os
import signal

from langchain_opengradient import ChatOpenGradient


def ask(question: str) -> str:
    model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)
    return model.invoke(question).response_metadata["opengradient"]["call_id"]


def die(question: str) -> None:
    """Its answer is given to nobody."""
    ask(question)
    os.kill(os.getpid(), signal.SIGKILL)
