"""A conformance suite for any LlamaIndex `FunctionCallingLLM`: inherit one class, set a few properties.

```python
from llamaindex.suite import FunctionCallingLLMTests

class TestMyLLM(FunctionCallingLLMTests):
    @property
    def llm_class(self):
        return MyLLM

    @property
    def llm_params(self):
        return {"model": "my-model", "api_base": "http://127.0.0.1:11434/v1", "api_key": "test"}

    base_url_param = "api_base"
```

Two kinds of tests. Those about forms and edge cases point the LLM at a scripted OpenAI-shaped server (`base_url_param`
names the constructor's argument for it; override `scripted_base_url` to put a gateway in between). Those about
engines and agents talk to the model behind `llm_params`, which has to be able to follow LlamaIndex's own prompts.

Needs pytest and llama-index-core, nothing else. Knows no payments, and nothing of OpenGradient.
"""

# ruff: noqa: E402  # assertions must be registered before the modules that hold them are imported

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("agents", "engines", "events", "identity", "loops", "messages")),
    *(f"{__name__}.{part}" for part in ("streams", "structured", "tools")),
)

from llamaindex.suite.server import Reply, ScriptedServer, call_to
from llamaindex.suite.suite import FunctionCallingLLMTests

__all__ = ["FunctionCallingLLMTests", "Reply", "ScriptedServer", "call_to"]
