"""What a run makes of held-out text while it trains: a loss, and the routes of a fixed piece."""

from __future__ import annotations

from collections.abc import Callable

from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..model.transformer import Transformer
from ..parallel.placement import Placement
from ..parallel.world import World
from ..run.folder import Run
from .curriculum import Curriculum
from .evaluate import Evaluation, evaluate
from .routing_trace import RoutingTrace


class Heldout:
    """Looks at the model, as sparse as the config says whatever the schedule, and changes nothing that is learned."""

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        model: Transformer,
        corpus: Corpus,
        placed: Placement,
        curriculum: Curriculum,
        *,
        precision: str,
        say: Callable[[str], None],
        step: int,
        stop: Callable[[], bool],
    ) -> None:
        """`step` is that of the checkpoint to go on from, 0 of none; `stop` asks to give an evaluation up."""
        self.config, self.model, self.corpus, self.placed = config, model, corpus, placed
        self.curriculum, self.precision, self.stop = curriculum, precision, stop
        self.trace = RoutingTrace(run.path, corpus, config, step, say, World())
        self.loss: float | None = None
        """Of the newest evaluation."""

    def evaluate(self, max_tokens: int | None) -> Evaluation | None:
        """Scores `max_tokens` tokens at most, all for None; returns None if it was given up."""
        self.curriculum.rest()
        size = self.config.trainer.batch_size
        windows = self.corpus.val_windows(self.config.sequence_length, size, max_tokens)
        self.placed.rest()
        found = evaluate(self.model, windows, size, self.corpus.val_bytes_per_token, self.precision, self.stop)
        self.placed.rest()
        self.loss = found.loss if found else self.loss
        return found

    def snapshot(self, step: int) -> None:
        """Writes which experts and heads a fixed text takes after `step`."""
        self.curriculum.rest()
        self.placed.rest()
        self.trace.take(self.model, step, self.precision)
        self.placed.rest()
