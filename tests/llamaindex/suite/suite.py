"""The whole suite in one class."""

from __future__ import annotations

from llamaindex.suite.agents import AgentTests
from llamaindex.suite.engines import EngineTests
from llamaindex.suite.events import EventTests
from llamaindex.suite.identity import IdentityTests
from llamaindex.suite.loops import LoopTests
from llamaindex.suite.messages import MessageTests
from llamaindex.suite.streams import StreamTests
from llamaindex.suite.structured import StructuredTests
from llamaindex.suite.tools import ToolTests


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
