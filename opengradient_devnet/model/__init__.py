"""The language model behind the gateway: OpenAI chat requests come in, answers and their token counts go out."""
