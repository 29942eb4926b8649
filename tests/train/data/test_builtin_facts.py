"""The built-in facts: enough of them, well formed, no two alike, and the example question among those trained on."""

import itertools
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINES = (ROOT / "train" / "data" / "builtin" / "facts.jsonl").read_text(encoding="utf-8").splitlines()
FACTS: list[dict[str, str]] = [json.loads(line) for line in LINES]
PROMPTS = [fact["prompt"] for fact in FACTS]
COMPLETIONS = [fact["completion"] for fact in FACTS]


def words(text: str) -> list[str]:
    """Split a text into words, without case and punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def repeated(texts: list[str]) -> list[str]:
    """List the texts whose words, in the same order, occurred earlier in the list."""
    keys = [tuple(words(text)) for text in texts]
    first = {key: at for at, key in reversed(list(enumerate(keys)))}
    return [text for at, text in enumerate(texts) if first[keys[at]] != at]


def test_every_line_is_one_pair_of_plain_texts() -> None:
    assert len(FACTS) >= 420
    assert all(list(fact) == ["prompt", "completion"] for fact in FACTS)
    assert all(isinstance(text, str) and text == text.strip() and text.isascii() for text in PROMPTS + COMPLETIONS)
    assert not [text for text in PROMPTS + COMPLETIONS if re.search(r"\s\s|[^ -~]", text)]


def test_a_prompt_is_one_question() -> None:
    assert not [prompt for prompt in PROMPTS if not prompt.endswith("?") or prompt.count("?") != 1]
    assert {"What", "Why", "How", "Who", "When", "Where", "Which"} <= {prompt.split()[0] for prompt in PROMPTS}


def test_a_completion_is_one_or_two_sentences_of_12_to_35_words() -> None:
    assert not [text for text in COMPLETIONS if not 12 <= len(text.split()) <= 35]
    assert not [text for text in COMPLETIONS if not text.endswith(".") or "?" in text]
    assert not [text for text in COMPLETIONS if len(re.findall(r"[.!](?= |$)", text)) > 2]


def test_no_two_prompts_are_the_same() -> None:
    assert not repeated(PROMPTS)


def test_no_two_completions_are_nearly_the_same() -> None:
    assert not repeated(COMPLETIONS)
    bags = [(text, set(words(text))) for text in COMPLETIONS]
    alike = [(one, other) for (one, a), (other, b) in itertools.combinations(bags, 2) if len(a & b) >= 0.6 * len(a | b)]
    assert not alike


def test_the_question_about_mountains_is_trained_on() -> None:
    # The last tenth is held out; the first half is far from it.
    position = PROMPTS.index("How do mountains form?")
    assert position < len(FACTS) // 2
    assert {"tectonic", "plates", "millions", "years"} <= set(words(COMPLETIONS[position]))
