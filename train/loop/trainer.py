"""The training loop. B sequences per step, T tokens each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..distillation.distiller import Distiller
from ..model.transformer import Transformer
from ..optim.optimizer import Optimizers
from ..parallel.world import World
from ..run.checkpoints.best import Score
from ..run.counters import Counters
from ..run.folder import Run
from ..run.metrics import finite
from ..run.ranks.other_ranks import MetricsLog, saver_of
from ..system.progress import Progress
from ..system.randomness import random_json, random_tensors
from .clock import Clock
from .curriculum import Curriculum
from .divergence import all_finite, divergence_error, require_convergence
from .figures.evaluate import Evaluation
from .figures.heldout import Heldout
from .figures.record import StepResult, scores
from .figures.records import Records
from .lengths import Lengths
from .update import Update


class Trainer:
    """Trains one model on one corpus, and records what happens in the run."""

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        model: Transformer,
        corpus: Corpus,
        optimizers: Optimizers,
        *,
        precision: str,
        metrics: MetricsLog,
        display: Progress,
        counters: Counters,
        identity: dict[str, Any],
        saved: Sequence[int] = (),
        stop: Callable[[], bool] = lambda: False,
        state: Mapping[str, Any] | None = None,
        distiller: Distiller | None = None,
    ) -> None:
        """Set up the loop.

        `identity` is the record of the data and the machine in every checkpoint, `saved` the steps of good checkpoints
        that exist already; `stop` returns True to end after the step; `state` is that of the checkpoint to resume from;
        `distiller` adds the losses of a teacher, None without one.
        """
        self.config, self.run, self.model, self.corpus, self.optimizers = config, run, model, corpus, optimizers
        self.precision, self.metrics, self.display, self.counters = precision, metrics, display, counters
        self.identity, self.stop = identity, stop
        self.world = World()
        self.placed = optimizers.placed
        self.curriculum = Curriculum(config, model)
        self.distiller = distiller or Distiller(config, None, model.embedding.weight.device)
        self.lengths = Lengths(config.trainer, config.sequence_length)
        self.shape = self.lengths.shape(counters, 0.0)
        estimated_save_seconds = 1e-8 * sum(p.numel() for p in model.parameters())  # until a save was measured
        self.saver = saver_of(config, run, display, saved, estimated_save_seconds, self.world)
        self.heldout = Heldout(
            config.trainer, config.sequence_length, run, model, corpus, self.placed, self.curriculum,
            precision=precision, log=display.log, step=counters.step, stop=stop,
        )  # fmt: skip
        self.clock = Clock(config, corpus, counters, self.saver.seconds)
        self.update = Update(
            config, model, corpus, optimizers, counters, self.lengths, self.clock, self.curriculum, self.distiller,
            precision=precision, state=state,
        )  # fmt: skip
        if state and state.get("scored"):
            self.saver.offer(Score(counters.step, **state["scored"]))
        self.records = Records(
            config, corpus, counters, self.clock, self.heldout, metrics, display,
            lambda: {**self.curriculum.record, **self.saver.record(), **self.optimizers.record()},
        )  # fmt: skip
        self._scored: Score | None = None

    # --- the loop

    def train(self, stop_at: int | None = None) -> bool:
        """Take steps until the run is complete, or until `stop_at` or `stop`; save a checkpoint at the end.

        Returns:
            Whether the run is complete.

        Raises:
            UserError: The loss or the weights stopped being finite, or a checkpoint could not be written.
        """
        self.clock.start()
        trainer, counters = self.config.trainer, self.counters
        complete = self.complete()
        if counters.step == 0 and not complete:
            self.heldout.snapshot(counters.step)  # the state that later ones are compared with
            self.clock.start()  # a run is timed from its first step on
        self.records.start()
        while not complete and counters.step != stop_at and not self.stop():
            started = time.monotonic()
            if trainer.save == "background":
                self.world.run_together(self.saver.check)
            self.clock.save_seconds = self.saver.expected_seconds()
            done = self.world.broadcast_float(self.clock.progress())
            self.shape = self.lengths.shape(counters, done)
            rate = self.clock.rate(done, self.shape, self.lengths.batch_size(counters, done))
            self.optimizers.set_rate(rate)
            self.curriculum.apply(counters.step, done, self.update.monitor.losses())
            result = self.update.step(self.shape)
            counters.step += 1
            step = counters.step
            now = time.monotonic()
            self.clock.step_seconds = now - started
            self.check(result)
            for message in self.update.monitor.messages(result.figures, self.run.resume_command):
                self.display.log(f"step {step}: {message}")
            complete = self.complete()
            evaluated = None
            saves = step % trainer.checkpoint_every == 0
            if (saves or step % trainer.eval_every == 0) and not complete:
                evaluated = self.evaluate(trainer.eval_tokens)
                self._scored = self.score_of(evaluated) if saves else None  # a stop changes no best
                self.heldout.snapshot(counters.step)
            if step % trainer.log_every == 0 or evaluated or complete or result.skipped:
                where = self.data() if result.skipped else None
                self.records.add(result, evaluated, rate, now, where=where, complete=complete)
            if saves:
                self.save(complete)
        self.save(complete)
        self.world.run_together(self.saver.wait)
        return complete

    def check(self, result: StepResult) -> None:
        """Count a step that was skipped.

        Raises:
            UserError: It was the last of `max_bad_steps` in a row.
        """
        if result.problem is None:
            return
        self.counters.bad_steps += 1
        step, data = self.counters.step, self.data()
        self.display.log(f"step {step}: {result.problem}; the step is skipped, the weights stay ({data})")
        self.update.guard.skip(step, result.problem, data)

    def data(self) -> str:
        """Describe which windows the last step read."""
        return self.corpus.where(self.shape.first, self.shape.batch_size, self.shape.length)

    def complete(self) -> bool:
        """Return whether the run has had all its steps or seconds, by the clock of the first rank."""
        return bool(self.world.broadcast_float(self.clock.complete()))

    # --- checkpoints and evaluations

    def save(self, complete: bool) -> None:
        """Write a checkpoint of this step, unless there is one, and delete those that are not kept.

        `complete` is what was decided after the step: the time may have run out since, in an evaluation.

        Raises:
            UserError: It could not be written, or its weights are not finite.
        """
        step = self.counters.step
        if self.saver.has(step):
            return
        self.counters.seconds = self.clock.seconds()
        state = {
            **vars(self.counters),
            **self.identity,
            "complete": complete,
            "random": random_json(),
            **self.update.state(),
        }
        model_state = self.placed.model_state()
        tensors = {**self.optimizers.state_tensors(), **random_tensors(), **self.distiller.state_tensors()}
        scored = self._scored if self._scored and self._scored.step == step else None

        def save_finite() -> None:
            weights = (model_state[name] for name, _ in self.model.named_parameters() if name in model_state)
            if not all_finite(weights):
                raise divergence_error(self.run, self.config, f"the weights are not finite at step {step}")
            self.saver.save(step, model_state, tensors, state, scored)

        self.world.run_together(save_finite)

    def evaluate(self, max_tokens: int | None) -> Evaluation | None:
        """Score at most `max_tokens` tokens of the held-out text, or all; return None if `stop` came first."""
        return self.heldout.evaluate(max_tokens)

    def score_of(self, evaluation: Evaluation | None) -> Score | None:
        """Return the score of this step from an evaluation of `eval_tokens` tokens; None without one."""
        if evaluation is None:
            return None
        return Score(self.counters.step, evaluation.loss, self.config.trainer.eval_tokens)

    def finish(self) -> Evaluation | None:
        """Evaluate the model at the end of the run, and write the record of the last step with the result.

        The score of the last checkpoint is taken over as many tokens as those of the others, or it could not be
        compared with them.

        Returns:
            The evaluation; None if `stop` came first.
        """
        trainer = self.config.trainer
        evaluation = self.evaluate(trainer.final_eval_tokens)
        self.heldout.snapshot(self.counters.step)
        self.records.finish({**scores(evaluation), **self.saver.record()})
        same = trainer.final_eval_tokens == trainer.eval_tokens
        again = evaluation is not None and not same
        score = self.score_of(self.evaluate(trainer.eval_tokens) if again else evaluation)
        self.world.run_together(lambda: self.saver.offer(score))
        return evaluation

    def require_convergence(self, evaluation: Evaluation) -> None:
        """Raise UserError if the run, which has come to its end with this evaluation, diverged."""
        state = {"step": self.counters.step, "guard": self.update.guard.state()}
        record = {"step": self.counters.step, **{name: finite(value) for name, value in scores(evaluation).items()}}
        require_convergence(self.run, state, [record], self.config)
