"""Chat by the official client of OpenAI, with half of the compute.

python examples/clients/openai_chat.py
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "How do mountains form?"}],
    max_tokens=40,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"compute": 0.5},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\nshare of the FLOPs:", chunk.usage.compute["share"])
