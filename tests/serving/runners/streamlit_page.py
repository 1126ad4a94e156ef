"""A page that makes its model and a paid call each time it runs."""

import streamlit as st

from langchain_opengradient import ChatOpenGradient

model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)
placeholder, text, call_id = st.empty(), "", None
for chunk in model.stream("Say hello."):
    text += chunk.text
    placeholder.write(text)
    if (receipt := chunk.response_metadata.get("opengradient")) is not None:
        call_id = receipt["call_id"]
st.code(call_id)
