"""Texts and records that the tests of the data room share."""

import json
from collections.abc import Sequence

import numpy as np

from adaptive_lm.train.data import Corpus

PAIRS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {n % 9} and {n % 4}."} for n in range(40)]


def lines(count: int, word: str = "line") -> str:
    return "".join(f"{word} number {n} of the text\n" for n in range(count))


def jsonl(records: Sequence[object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def decoded(corpus: Corpus, tokens: object) -> str:
    return corpus.tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)


def train_text(corpus: Corpus) -> str:
    """All training tokens as text, the end of each document spelt out."""
    (entry,) = corpus._entries
    return decoded(corpus, entry.train.tokens)


def held_out_targets(
    corpus: Corpus, length: int = 16, batch_size: int = 3, max_tokens: int | None = None
) -> np.ndarray:
    """Every held-out token that is scored, in order."""
    batches = list(corpus.val_windows(length, batch_size, max_tokens))
    return np.concatenate([batch.targets[batch.loss_mask] for batch in batches])
