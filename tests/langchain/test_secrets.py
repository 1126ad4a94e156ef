"""A known key appears nowhere: not in text, logs, errors, pickles, serialized forms, traces or callbacks."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from typing import Any

import httpx
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_core.utils.utils import from_env  # noqa: F401 - makes sure that core is loaded before we listen

from langchain_opengradient import ChatOpenGradient, get_settlement_callback
from opengradient_devnet import Account, Devnet

from .surfaces import agent


class Everything(BaseCallbackHandler):
    """Keeps the text of whatever core tells its handlers."""

    def __init__(self) -> None:
        self.heard: list[str] = []


def _listener(name: str):
    def hear(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append(f"{name} {args!r} {kwargs!r}")

    return hear


for _name in [name for name in dir(BaseCallbackHandler) if name.startswith("on_")]:
    setattr(Everything, _name, _listener(_name))


class Tracer(BaseTracer):
    """What LangSmith would be sent: the runs as JSON, inputs, outputs, serialized model and all."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[str] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(repr(run))
        self.runs.append(json.dumps(run.dict() if hasattr(run, "dict") else vars(run), default=repr))


def spellings(account: Account) -> list[str]:
    digits = account.private_key.removeprefix("0x")
    return [digits.lower(), digits.upper(), str(int(digits, 16)), repr(bytes.fromhex(digits))[2:-1]]


def shown(model: ChatOpenGradient) -> str:
    return "\n".join(
        [
            repr(model),
            str(model),
            dumps(model, pretty=True),
            repr(model.model_dump()),
            model.model_dump_json(exclude={"network"}),
            repr(model._identifying_params),
            repr(model._get_invocation_params()),
            repr(model._get_ls_params()),
            repr(model.bind(stop=["x"])),
            repr(model.connections),
            repr(vars(model.connections)),
            repr(model._route()),
        ]
    )


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
async def test_the_key_is_nowhere_to_be_found(net: Devnet, caplog: pytest.LogCaptureFixture, tmp_path):
    caplog.set_level(logging.DEBUG)
    account = net.account(opg="10", approved=True)
    network = f"{net.gateway_url}/network"
    ears, tracer, texts = Everything(), Tracer(), []
    config: RunnableConfig = {"callbacks": [ears, tracer]}
    with get_settlement_callback() as settlements:
        model = ChatOpenGradient(model="openai/gpt-5", private_key=account.private_key, network=network)
        texts.append(shown(model))
        model.invoke("Hello", config)
        [_ async for _ in model.astream("Hello", config)]
        runnable, given = agent(model)
        texts.append(repr(await runnable.ainvoke(given, config)))
        texts.append(shown(model))
        texts.append(pickle.dumps(model).decode("latin-1"))
        for broken in (
            ChatOpenGradient(model="openai/gpt-5", private_key=account.private_key, network="atlantis"),
            ChatOpenGradient(
                model="openai/gpt-5", private_key=account.private_key, network=network, base_url="http://127.0.0.1:9"
            ),
            ChatOpenGradient(model="openai/gpt-5", private_key=account.private_key + "ff", network=network),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it must not show the key
                broken.invoke("Hello", config)
            texts.append("".join(traceback.TracebackException.from_exception(caught.value).format()))
            texts.append(pickle.dumps(caught.value).decode("latin-1"))
        texts.append(repr(settlements.receipts))
    texts += [*ears.heard, *tracer.runs, caplog.text]
    model.close()
    everything = "\n".join(texts)
    assert len(tracer.runs) > 5
    assert len(everything) > 10_000
    for spelling in spellings(account):
        assert spelling not in everything


@pytest.mark.parametrize("name", ["private_key", "api_key"])
def test_a_key_of_the_wrong_type_is_not_quoted(name):
    with pytest.raises(ValueError, match="private key cannot be used") as caught:
        ChatOpenGradient(model="openai/gpt-5", **{name: {"pem": "s3cr3t-material"}})
    assert "s3cr3t-material" not in str(caught.value)


async def test_sessions_and_signatures_are_not_logged(net: Devnet, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    account = net.account(opg="10", approved=True)
    clients = {"http_client": httpx.Client(), "http_async_client": httpx.AsyncClient()}
    for given in ({}, clients):
        with ChatOpenGradient(
            model="openai/gpt-5", private_key=account.private_key, network=f"{net.gateway_url}/network", **given
        ) as model:
            model.invoke("Hello")
            await model.ainvoke("Hello")
    lines = caplog.text
    assert "x-upto-session" in lines.lower()  # httpcore prints whole responses at DEBUG, this header among them
    assert not any(session in lines for session in net.open_sessions)
    assert "payment-signature" not in lines.lower()
    clients["http_client"].close()
    await clients["http_async_client"].aclose()
