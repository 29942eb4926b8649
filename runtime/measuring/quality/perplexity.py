"""Quality of a model at a point of its dial: the loss on a text, and what the model used to read it.

T tokens of one window, n tokens that are scored in one pass, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ....contract.errors import UserError
from ...dial import Thresholds
from ...execution.step import Step
from ...execution.usage.total import Total
from ...generation.engine import Engine

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Logits = NDArray[np.float32]

LOGITS_BYTES = 2**26
"""Memory of the logits of one pass: the logits of a whole window could take gigabytes."""
PASS_TOKENS = 512
"""Most tokens of one pass, which bounds the memory of its activations."""


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
    """The tokens after the last of `ids`, one for each; all others are context that an earlier window scored."""
    bytes: int
    """Bytes of UTF-8 that the targets stand for."""


def windows(text: Text, count: int, length: int, stride: int | None = None, bos: int | None = None) -> list[Window]:
    """Cut `text` into windows, and score `count` tokens or fewer, each once.

    A window scores the tokens that the windows before it did not. Every token is predicted from all tokens before it in
    its window. Without `bos` nothing predicts the first token of the text, so it is not scored.

    Args:
        text: The text.
        count: Most tokens to score.
        length: Most tokens of a window, `bos` included.
        stride: Tokens from the beginning of one window to that of the next, at most `length`; None takes `length`: no
            token is read twice.
        bos: Token id with which every window begins; None: windows begin with text.
    """
    begins = [] if bos is None else [bos]
    ids = begins + text.ids
    steps = min(stride or length, length - len(begins))
    ends = [0, *(end for _, end in text.spans)][1 - len(begins) :]  # ends[i]: characters of the text up to ids[i]
    last = min(len(ids) - 1, count)  # the last place whose successor is scored, plus 1
    cut: list[Window] = []
    scored = first = 0
    while scored < last:
        stop = min(first + length, last)
        own = ids[first:stop] if first == 0 else begins + ids[first + len(begins) : stop]
        scored_text = text.text[ends[scored] : ends[stop]]
        cut.append(Window(own, ids[scored + 1 : stop + 1], len(scored_text.encode())))
        scored, first = stop, first + steps
    return cut


@dataclass
class Score:
    """Measurements over some windows."""

    tally: Total = field(default_factory=Total)
    """Usage of all tokens that were read."""
    tokens: int = 0
    """Tokens that were scored."""
    nats: float = 0.0
    """Loss, summed over the targets."""
    bytes: int = 0
    choices: list[Ints] = field(default_factory=list)
    """For each pass the most probable token in place of each target (n,)."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8."""
        return self.nats / math.log(2) / self.bytes

    @property
    def executed_share(self) -> float:
        """Executed over dense FLOPs."""
        return self.tally.share


class Reader:
    """A model at one point of its dial that reads windows.

    Args:
        engine: The model.
        point: The thresholds.
        capacity: Tokens of the longest window.
        rows: Most tokens of a pass that are scored; None takes `scored_rows` of the model.
    """

    def __init__(self, engine: Engine, point: Thresholds, capacity: int, rows: int | None = None) -> None:
        self.score = Score()
        self._engine = engine
        self._size = engine.manifest.model.tokenizer_size
        self._rows = rows or scored_rows(engine)
        self._sequence = engine.session.sequence(point, capacity)

    def read(self, window: Window) -> Iterator[Logits]:
        """Read a window, and yield the logits (n, V) of its targets pass by pass.

        The loss and the choices of a pass are added to `score` before it is yielded.

        Raises:
            UserError: The loss is not a finite number.
        """
        context = len(window.ids) - len(window.targets)
        for begin in range(0, context, PASS_TOKENS):
            self._add(self._pass(window.ids[begin : min(begin + PASS_TOKENS, context)], 0, begin))
        for place in range(0, len(window.targets), self._rows):
            targets = window.targets[place : place + self._rows]
            step = self._pass(window.ids[context + place :][: len(targets)], len(targets), context + place)
            self._add(step)
            nats = -float(log_probabilities(step.logits, targets).sum())
            if not math.isfinite(nats):
                raise UserError(
                    "the model gave logits that are not finite numbers; export it again, in another precision"
                )
            self.score.nats += nats
            self.score.tokens += len(targets)
            logits = step.logits[:, : self._size]
            self.score.choices.append(logits.argmax(axis=1))
            yield logits
        self.score.bytes += window.bytes

    def use(self, window: Window) -> None:
        """Read a window only to count usage, which costs less."""
        for begin in range(0, len(window.ids), PASS_TOKENS):
            self._add(self._pass(window.ids[begin : begin + PASS_TOKENS], 0, begin))

    def _pass(self, ids: list[int], num_logits: int, begin: int) -> Step:
        if begin == 0:
            self._sequence.rewind(0)
        return self._sequence.prefill(ids, num_logits)

    def _add(self, step: Step) -> None:
        self.score.tally += self._engine.session.meter.total([step.routes])


def scored_rows(engine: Engine) -> int:
    """Return how many tokens of one pass are scored, so that their logits take at most LOGITS_BYTES."""
    return min(max(LOGITS_BYTES // (4 * engine.manifest.model.vocab_size), 1), PASS_TOKENS)


def score(engine: Engine, point: Thresholds, texts: Sequence[Window], *, logits: bool = True) -> Score:
    """Read every window at `point`. Without `logits` only usage is counted, which costs less."""
    reader = Reader(engine, point, longest(texts))
    for one in texts:
        if logits:
            for _ in reader.read(one):
                pass
        else:
            reader.use(one)
    return reader.score


def longest(texts: Sequence[Window]) -> int:
    """Return the tokens of the longest window, at least 1."""
    return max((len(one.ids) for one in texts), default=1)


def bits_per_byte(engine: Engine, point: Thresholds, text: Text, max_tokens: int) -> float:
    """Return the bits per byte of UTF-8 at `point`, over windows of the model's context that do not overlap."""
    length = engine.manifest.model.context_length
    return score(engine, point, windows(text, max_tokens, length, bos=engine.tokenizer.bos_id)).bits_per_byte


def log_probabilities(logits: Logits, targets: Sequence[int]) -> Floats:
    """Return the natural logarithm of the probability of each target (T,) under logits (T, V), in float64."""
    best = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - best).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), list(targets)].astype(np.float64)
    result: Floats = chosen - best[:, 0] - np.log(total)
    return result
