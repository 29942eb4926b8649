"""A message by the official client of Anthropic.

python examples/clients/anthropic_message.py
"""

import os

from anthropic import Anthropic

base_url = os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1")
client = Anthropic(base_url=base_url, api_key="none")
message = client.messages.create(
    model="demo@0.5",  # a dial that the name brings, for clients that send no other fields
    max_tokens=40,
    messages=[{"role": "user", "content": "How do mountains form?"}],
    extra_body={"temperature": 0},
)
print("".join(block.text for block in message.content if block.type == "text"))
print("tokens:", message.usage.input_tokens, "and", message.usage.output_tokens)
