"""Child process that compiles grammars one after the other; `trial.py` ends it where one takes too long.

It is run as a file of its own, so it imports nothing of this package. Each line of stdin is a JSON object with
`grammar`, `limits` and `ids`, the number of token ids that the grammar may name; the answer is a line with the error as
JSON, "" where there is none.
"""

import contextlib
import json
import signal
import sys
from functools import cache
from typing import Any

import llguidance

MAX_SECONDS = 60
"""After which it ends by itself, if what should end it is gone."""
MAX_BYTES = 2 << 30
"""Memory of this process."""


class Bytes:
    """A vocabulary of the 256 bytes, an end of the text, and tokens without text up to the number of ids."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __init__(self, ids: int) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(256)), *[b""] * max(ids - 256, 1)]

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of a text."""
        return list(text.encode() if isinstance(text, str) else text)


@cache
def tokenizer_of(ids: int) -> llguidance.LLTokenizer:
    """Return a tokenizer of that size."""
    return llguidance.LLTokenizer(Bytes(ids))  # type: ignore[arg-type]


def main() -> None:
    """Answer until stdin ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    tokenizer_of(0)
    print(json.dumps("ready"), flush=True)
    alarm = getattr(signal, "alarm", int)  # Windows has none
    for line in sys.stdin:
        alarm(MAX_SECONDS)
        print(json.dumps(answer(**json.loads(line))), flush=True)
        alarm(0)


def answer(grammar: str, limits: dict[str, Any], ids: int) -> str:
    """Return the error of a grammar, "" where there is none."""
    most = llguidance.LLParserLimits(**limits)
    matcher = llguidance.LLMatcher(tokenizer_of(ids), grammar, log_level=0, limits=most)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


if __name__ == "__main__":
    main()
