"""A chain of LangChain.

python examples/clients/langchain_chat.py
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",
    model="demo",
    temperature=0,
    max_tokens=40,
    extra_body={"compute": 0.5},
)
chain = ChatPromptTemplate.from_messages([("user", "How do {things} form?")]) | model | StrOutputParser()
print(chain.invoke({"things": "mountains"}))
print(" | ".join(chain.stream({"things": "mountains"})))
