"""The whole suite in one class."""

from __future__ import annotations

from llama_index_opengradient.testing.agents import AgentTests
from llama_index_opengradient.testing.engines import EngineTests
from llama_index_opengradient.testing.events import EventTests
from llama_index_opengradient.testing.identity import IdentityTests
from llama_index_opengradient.testing.loops import LoopTests
from llama_index_opengradient.testing.messages import MessageTests
from llama_index_opengradient.testing.streams import StreamTests
from llama_index_opengradient.testing.structured import StructuredTests
from llama_index_opengradient.testing.tools import ToolTests


class FunctionCallingLLMTests(
    IdentityTests,
    StreamTests,
    EventTests,
    LoopTests,
    ToolTests,
    MessageTests,
    StructuredTests,
    EngineTests,
    AgentTests,
):
    """Every behaviour that LlamaIndex's engines, agents and tracers rely on, and a few that its users do."""
