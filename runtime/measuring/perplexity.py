"""Quality of a model at a point of its dial: the loss on a text, and what the model used to read it.

T tokens of one window, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dial import Thresholds
from ..generation.engine import Engine
from .timing import Tally

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A text to score."""

    text: str
    ids: list[int]
    """Its tokens."""
    spans: list[tuple[int, int]]
    """The characters (start, end) of each token."""


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads from an empty cache, and the tokens that it has to predict."""

    ids: list[int]
    targets: list[int]
    """The token after each of `ids`."""
    bytes: int
    """Bytes of UTF-8 that the targets stand for."""


def windows(text: Text, count: int, length: int) -> list[Window]:
    """Cut `text` into windows of at most `length` tokens that do not overlap, and score `count` tokens or fewer.

    Every token but the first is scored once, after the tokens before it in its window.
    """
    cut = []
    end = min(len(text.ids) - 1, count)
    for begin in range(0, end, length):
        stop = min(begin + length, end)
        scored = text.text[text.spans[begin][1] : text.spans[stop][1]]
        cut.append(Window(text.ids[begin:stop], text.ids[begin + 1 : stop + 1], len(scored.encode())))
    return cut


@dataclass
class Score:
    """Measurements over some windows."""

    tally: Tally = field(default_factory=Tally)
    nats: float = 0.0
    """Loss, summed over the targets."""
    bytes: int = 0
    choices: list[Ints] = field(default_factory=list)
    """For each window the most probable next tokens (T,)."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tally.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8."""
        return self.nats / math.log(2) / self.bytes

    @property
    def executed_share(self) -> float:
        """Executed over dense FLOPs."""
        return self.tally.executed_flops / self.tally.dense_flops


def score(engine: Engine, point: Thresholds, texts: Sequence[Window], *, logits: bool = True) -> Score:
    """Read every window at `point`. Without `logits` only usage is counted, which costs less."""
    size = engine.manifest.model.tokenizer_size
    total = Score()
    sequence = engine.session.sequence(point, max((len(one.ids) for one in texts), default=1))
    for one in texts:
        sequence.rewind(0)
        step = sequence.prefill(one.ids, num_logits=len(one.ids) if logits else 1)
        total.tally.add(engine, step.routes)
        if logits:
            total.nats -= float(log_probabilities(step.logits, one.targets).sum())
            total.bytes += one.bytes
            total.choices.append(step.logits[:, :size].argmax(axis=1))
    return total


def bits_per_byte(engine: Engine, point: Thresholds, text: Text, max_tokens: int) -> float:
    """Return the bits per byte of UTF-8 at `point`, over windows of the model's context that do not overlap."""
    return score(engine, point, windows(text, max_tokens, engine.manifest.model.context_length)).bits_per_byte


def log_probabilities(logits: NDArray[np.float32], targets: Sequence[int]) -> Floats:
    """Return the natural logarithm of the probability of each target (T,) under logits (T, V), in float64."""
    best = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - best).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), list(targets)].astype(np.float64)
    result: Floats = chosen - best[:, 0] - np.log(total)
    return result
