"""The language model behind the gateway: OpenAI chat requests come in; answers and their token counts go out.

`protocol` says what a model is. There are three: `rules` answers by itself, `upstream` asks an OpenAI-compatible
server, `langchain_upstream` a LangChain chat model. None of them knows payments.
"""
