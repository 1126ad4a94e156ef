"""What a type checker has to take, and what it has to object to: an objection that is missing is an unused ignore.

Read by mypy and pyright, never run.
"""

from typing import assert_type

from langchain_opengradient import ChatOpenGradient, SettlementMode
from llama_index_opengradient import OpenGradient
from opengradient_x402.proofs.attestation import VerifyTee

chat = ChatOpenGradient(model="openai/gpt-5")
assert_type(chat.model, str)
assert_type(chat.model_name, str)
ChatOpenGradient(
    model="openai/gpt-5",
    private_key="0x",
    network="base",
    settlement_mode="private",
    verify_tee="require",
    temperature=0,
    max_tokens=300,
    top_p=0.5,
    seed=7,
    stop=["END"],
    timeout=(5, 60),
    reasoning_effort="low",
    default_headers={"X-Team": "blue"},
)
ChatOpenGradient(model="openai/gpt-5", settlement_mode=SettlementMode.BATCH, verify_tee=VerifyTee.WARN, timeout=5)
ChatOpenGradient(temperature=0)  # type: ignore[call-arg]
ChatOpenGradient(model="openai/gpt-5", settlement_mode="privat")  # type: ignore[arg-type]
ChatOpenGradient(model="openai/gpt-5", verify_tee="always")  # type: ignore[arg-type]
ChatOpenGradient(model="openai/gpt-5", temperatur=0)  # type: ignore[call-arg]

llm = OpenGradient(model="openai/gpt-5")
assert_type(llm.model, str)
OpenGradient(
    model="openai/gpt-5",
    private_key="0x",
    settlement_mode="private",
    verify_tee="require",
    temperature=0,
    max_tokens=300,
    timeout=60,
    reasoning_effort="low",
    structured_by="response_format",
    default_headers={"X-Team": "blue"},
)
OpenGradient(model="openai/gpt-5", settlement_mode=SettlementMode.BATCH, verify_tee=VerifyTee.WARN)
OpenGradient(temperature=0)  # type: ignore[call-arg]
OpenGradient(model="openai/gpt-5", settlement_mode="privat")  # type: ignore[arg-type]
OpenGradient(model="openai/gpt-5", verify_tee="always")  # type: ignore[arg-type]
OpenGradient(model="openai/gpt-5", temperatur=0)  # type: ignore[call-arg]
