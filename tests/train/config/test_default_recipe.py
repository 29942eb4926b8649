"""The default recipe of `adaptive train --data FILE`, on prose that none of its values was chosen for."""

import random
from pathlib import Path
from typing import Any

import pytest

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

SYLLABLES = [
    *("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "me", "na", "or", "pe", "qui", "ra", "se", "ti", "um", "va"),
    *("we", "xy", "za", "tra", "ster", "mon", "ple", "gran", "dor", "lin", "ness"),
]
ENDINGS = {"noun": ("", "s", "ion"), "verb": ("es", "ed"), "adjective": ("al", "ous"), "name": ("", "ia")}
NUMBERS = {"noun": 600, "verb": 200, "adjective": 200, "name": 200}
TOPICS = 24


class Prose:
    """Articles of made-up English: sentences with grammar, words as rare as Zipf says, and each topic its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words = {kind: self.vocabulary(kind) for kind in ENDINGS}
        self.topics = [
            {kind: self.random.sample(words, len(words)) for kind, words in self.words.items()} for _ in range(TOPICS)
        ]

    def vocabulary(self, kind: str) -> list[str]:
        words: dict[str, None] = {}
        while len(words) < NUMBERS[kind]:
            word = "".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 3)))
            word += self.random.choice(ENDINGS[kind])
            words[word.title() if kind == "name" else word] = None
        return list(words)

    def word(self, topic: int, kind: str) -> str:
        words = self.topics[topic][kind] if self.random.random() < 0.6 else self.words[kind]
        return self.random.choices(words, [1 / (rank + 2) for rank in range(len(words))])[0]

    def phrase(self, topic: int, depth: int = 0) -> str:
        if self.random.random() < 0.2:
            return self.word(topic, "name")
        parts = [self.random.choice(["the", "the", "the", "a", "its", "this"])]
        if self.random.random() < 0.4:
            parts.append(self.word(topic, "adjective"))
        parts.append(self.word(topic, "noun"))
        if depth < 2 and self.random.random() < 0.35:
            parts += [self.random.choice(["of", "of", "in", "for", "from"]), self.phrase(topic, depth + 1)]
        return " ".join(parts)

    def sentence(self, topic: int) -> str:
        parts = [self.phrase(topic), self.word(topic, "verb"), self.phrase(topic)]
        if self.random.random() < 0.4:
            parts += [self.random.choice(["and", "but", "when"]), self.phrase(topic), self.word(topic, "verb")]
        if self.random.random() < 0.25:
            parts.append(f"in {self.random.randint(1500, 2000)}")
        text = " ".join(parts)
        return text[0].upper() + text[1:] + "."

    def article(self) -> str:
        topic = self.random.randrange(TOPICS)
        sentences = [self.sentence(topic) for _ in range(self.random.randint(3, 8))]
        return f"{self.word(topic, 'name')}\n{' '.join(sentences)}\n\n"


@pytest.mark.slow
def test_the_default_recipe_raises_no_alarm_on_prose_it_has_not_met(
    folder: Path, display: Progress, tmp_path: Path
) -> None:
    """T36 in practice: train the first 50 of 200 steps, on sequences of 64, so that they take seconds.

    With a `load_balancing_loss` of 1e-2, an expert of the last layer had a 250th of an even load by step 40, and the
    alarm was raised.
    """
    prose = Prose(seed=0)
    text = tmp_path / "prose.txt"
    text.write_text("".join(prose.article() for _ in range(900)), "utf-8")
    over: dict[str, dict[str, Any]] = {
        "data": {"sources": [str(text)], "cache_dir": str(tmp_path / "cache")},
        "trainer": {"steps": 200, "seed": 1, "sequence_length": 64, "log_every": 5, "eval_every": 1000},
    }
    machine = {"threads": 1, "device": "cpu", "tensorboard": False, "precision": "fp32", "matmul": "torch"}
    config = make_config({}, [over, {"trainer": machine}])
    training.begin(config, named_run("a"), stop_at=50, display=display)
    records = [each for each in read_metrics(Path("runs/a/metrics.jsonl")) if "router_load/layers.0" in each]
    assert len(records) == 10
    assert [alarm for each in records for alarm in each.get("alarms", ())] == []
    assert min(each[f"router_load/layers.{layer}"] for each in records for layer in range(4)) > 0.05
