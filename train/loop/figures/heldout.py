"""The evaluation of a run on held-out text while it trains: its loss, and the routes of a fixed piece."""

from __future__ import annotations

from collections.abc import Callable

from ...config.trainer import TrainerConfig
from ...data.corpus import Corpus
from ...data.tasks import Task
from ...model.transformer import Transformer
from ...parallel.placement import Placement
from ...parallel.world import World
from ...run.folder import Run
from ..curriculum import Curriculum
from .evaluate import Evaluation, evaluate, over_tasks
from .routing_trace import TOKENS, RoutingTrace


class Heldout:
    """Evaluates the model at the sparsity of the config, whatever the schedule, and changes nothing that is learned."""

    def __init__(
        self,
        trainer: TrainerConfig,
        sequence_length: int,
        run: Run,
        model: Transformer,
        corpus: Corpus,
        placed: Placement,
        curriculum: Curriculum,
        *,
        precision: str,
        log: Callable[[str], None],
        step: int,
        stop: Callable[[], bool],
    ) -> None:
        """Set up the evaluation.

        Args:
            trainer: The section with the number of sequences evaluated at once and the number of snapshots to keep.
            sequence_length: Tokens of a sequence.
            run: The folder that gets the snapshots of the routing.
            model: The model.
            corpus: Its held-out text is used.
            placed: The model over its ranks.
            curriculum: Is put to rest before each evaluation.
            precision: `fp32` or `bf16`.
            log: Shows a warning.
            step: The step of the checkpoint to resume from, 0 without one.
            stop: Returns True to end an evaluation early.
        """
        self.model, self.corpus, self.placed, self.curriculum = model, corpus, placed, curriculum
        self.precision, self.stop = precision, stop
        self.length, self.batch_size = sequence_length, trainer.batch_size
        windows = list(corpus.val_windows(self.length, self.batch_size, TOKENS)) if trainer.routing_snapshots else []
        self.trace = RoutingTrace(run.path, windows, trainer.routing_snapshots, step, log, World())
        self.loss: float | None = None
        """The loss of the newest evaluation."""

    def evaluate(self, max_tokens: int | None) -> Evaluation | None:
        """Score at most `max_tokens` tokens, or all of them; return None if `stop` came first.

        Of several tasks each scores an equal part of `max_tokens`, however small its text is.
        """
        self.curriculum.rest()
        self.placed.rest()
        evaluation = self._of_tasks(max_tokens) if self.corpus.has_tasks else self._of(None, max_tokens)
        self.placed.rest()
        self.loss = evaluation.loss if evaluation else self.loss
        return evaluation

    def _of(self, task: Task | None, max_tokens: int | None) -> Evaluation | None:
        windows = self.corpus.val_windows(self.length, self.batch_size, max_tokens, task)
        per_token = (self.corpus if task is None else task).val_bytes_per_token
        number = None if task is None else self.corpus.tasks.index(task)
        return evaluate(self.model, windows, self.batch_size, per_token, self.precision, self.stop, number)

    def _of_tasks(self, max_tokens: int | None) -> Evaluation | None:
        tasks = self.corpus.tasks
        each = None if max_tokens is None else -(-max_tokens // len(tasks))
        evaluations = {}
        for task in tasks:
            evaluation = self._of(task, each)
            if evaluation is None and self.stop():
                return None
            if evaluation is not None:  # else nothing is scored in so few tokens
                evaluations[task.name] = evaluation
        sizes = {task.name: task.val_scored for task in tasks}
        return over_tasks(evaluations, sizes, self.corpus.val_bytes_per_token)

    def snapshot(self, step: int) -> None:
        """Write which experts and heads a fixed text uses after `step`."""
        self.curriculum.rest()
        self.placed.rest()
        self.trace.take(self.model, step, self.precision)
        self.placed.rest()
