"""A server whose model takes tools and says what a test wants."""

from dataclasses import dataclass

import anthropic
import openai
from starlette.testclient import TestClient

from support.serving.schedulers import ScriptedScheduler

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ '\n' }}{% endfor %}{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
PIECES = ["I ", "look", ".\n", "<tool", "_call>\n{", '"name": "wea', 'ther", "arguments": {"ci', 'ty": "Par', 'is"}',
          "}\n</to", "ol_call>", '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>']  # fmt: skip


@dataclass
class Scripted:
    """A server whose model says what the test wants."""

    client: TestClient
    scheduler: ScriptedScheduler

    @property
    def openai(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=self.client, max_retries=0)

    @property
    def anthropic(self) -> anthropic.Anthropic:
        """The official client of Anthropic."""
        url = "http://127.0.0.1"
        return anthropic.Anthropic(api_key="none", base_url=url, http_client=self.client, max_retries=0)

    def say(self, *pieces: str, reason: str = "eos") -> None:
        """Set what the model says."""
        self.scheduler.pieces, self.scheduler.reason = pieces, reason

    @property
    def prompt(self) -> str:
        """The last prompt."""
        return bytes(self.scheduler.jobs[-1].prompt).decode()
