"""`usage` of chat and completions."""

from collections.abc import Sequence

from ..answer import prompt_tokens
from ..body import Body
from ..ours.compute import ComputeSum, ComputeUsage
from ..text import Text


class PromptDetails(Body):
    """Parts of the prompt."""

    cached_tokens: int
    """Tokens that were in memory already."""


class Usage(Body):
    """Tokens of all prompts and texts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    compute: ComputeUsage
    """Not of OpenAI: the compute of the new tokens."""


def usage_of(texts: Sequence[Text]) -> Usage:
    """Sum up texts that have ended."""
    prompt = prompt_tokens(texts[0].order)
    new = sum(0 if text.order.hides_text else len(text.ids) for text in texts)
    cached = min(prompt, sum(text.end.cached_tokens for text in texts if text.end is not None))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=new,
        total_tokens=prompt + new,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
        compute=ComputeSum.joined(text.compute for text in texts).usage(),
    )
