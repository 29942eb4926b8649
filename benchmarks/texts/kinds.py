"""Kinds of texts, from those that repeat much to those that repeat nothing."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
IDENTIFIER = re.compile(r"\b[a-z_]{5,}\b")
KEYWORDS = {"import", "return", "class", "while", "raise", "yield", "lambda", "global", "assert", "break", "continue"}
RENAMED = 3
"""Names of a source file that its edited copy calls otherwise."""


class Text(NamedTuple):
    """A prompt, and the answer that the model is made to give."""

    prompt: str
    answer: str


def edited_code(count: int) -> list[Text]:
    """Return source files, each with the same file in which some names are others as its answer."""
    return [Text(f"{code}\n# The same with better names:\n", renamed(code)) for code in sources(count)]


def records(count: int) -> list[Text]:
    """Return lines of JSON with the same keys and other values."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        lines = [
            json.dumps({
                "id": number, "name": draw.choice(NAMES), "address": {"street": draw.choice(NAMES), "number":
                draw.randrange(200)}, "price": round(draw.random() * 100, 2), "in_stock": draw.random() < 0.7,
                "tags": draw.sample(["new", "sale", "large", "small", "blue", "red"], 2),
            })
            for number in range(60)
        ]  # fmt: skip
        texts.append(Text("\n".join(lines[:8]) + "\n", "\n".join(lines[8:])))
    return texts


def code(count: int) -> list[Text]:
    """Return source files, each with its rest as the answer to its first quarter."""
    return [split(one) for one in sources(count)]


def documentation(count: int) -> list[Text]:
    """Return the project's own pages."""
    pages = sorted((ROOT / "docs").rglob("*.md"), key=lambda path: -path.stat().st_size)
    return [split(page.read_text(encoding="utf-8")) for page in pages[:count]]


def single_words(count: int) -> list[Text]:
    """Return words of the documentation in a random order: pairs hardly recur."""
    words = " ".join(text.answer for text in documentation(8)).split()
    return [split(" ".join(random.Random(seed).choices(words, k=1500))) for seed in range(count)]


def few_words(count: int) -> list[Text]:
    """Return random sequences of a dozen words: every pair recurs, and predicts nothing."""
    words = ["", "the", "of", "and", "to", "in", "is", "that", "for", "with", "on", "not"]
    return [split(" ".join(random.Random(seed).choices(words, k=1500))) for seed in range(count)]


def pages_of(path: Path) -> Callable[[int], list[Text]]:
    """Return a function that reads pages of JSON lines with `text`, the last ones, or stretches of a plain text."""

    def read(count: int) -> list[Text]:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            pages = [json.loads(line)["text"] for line in content.splitlines()[-400:]]
            return [split(page) for page in sorted(pages, key=len)[-200:][:: 200 // count][:count]]
        size = 12_000
        return [split(content[-size * (1 + place) :][:size]) for place in range(count)]

    return read


TEXTS: dict[str, Callable[[int], list[Text]]] = {
    "edited code": edited_code,
    "records": records,
    "code": code,
    "documentation": documentation,
    "single words": single_words,
    "few words": few_words,
}
NAMES = ["Amsel", "Birke", "Distel", "Eiche", "Falke", "Ginster", "Hasel", "Iltis", "Kiefer", "Lerche", "Marder"]


def sources(count: int) -> list[str]:
    """Return source files of the project of middle length."""
    files = [path for room in ("runtime", "train", "export") for path in sorted((ROOT / room).rglob("*.py"))]
    fitting = [text for path in files if 3_000 < len(text := path.read_text(encoding="utf-8")) < 5_000]
    return fitting[:: max(len(fitting) // count, 1)][:count]


def renamed(code: str) -> str:
    """Return the code with its most frequent names spelled otherwise."""
    names = Counter(name for name in IDENTIFIER.findall(code) if name not in KEYWORDS)
    for name, _ in names.most_common(RENAMED):
        code = re.sub(rf"\b{name}\b", f"the_{name[:4]}", code)
    return code


def split(text: str) -> Text:
    """Return the first quarter of a text as the prompt, the rest as the answer."""
    quarter = len(text) // 4
    return Text(text[:quarter], text[quarter:])
