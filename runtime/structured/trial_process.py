"""Child process that compiles grammars one after the other; `trial.py` ends it where one takes too long.

It is run as a file of its own, so it imports nothing of this package. Each line of stdin is a JSON object with
`grammar` and `limits`; the answer is a line with the error as JSON, "" where there is none.
"""

import contextlib
import json
import signal
import sys
from typing import Any

import llguidance

MAX_SECONDS = 60
"""After which it ends by itself, if what should end it is gone."""
MAX_BYTES = 2 << 30
"""Memory of this process."""


class Bytes:
    """A vocabulary of the 256 bytes and an end of the text."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Answer until stdin ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    tokenizer = llguidance.LLTokenizer(Bytes())  # type: ignore[arg-type]
    print(json.dumps("ready"), flush=True)
    alarm = getattr(signal, "alarm", int)  # Windows has none
    for line in sys.stdin:
        alarm(MAX_SECONDS)
        print(json.dumps(answer(tokenizer, **json.loads(line))), flush=True)
        alarm(0)


def answer(tokenizer: llguidance.LLTokenizer, grammar: str, limits: dict[str, Any]) -> str:
    """Return the error of a grammar, "" where there is none."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


if __name__ == "__main__":
    main()
