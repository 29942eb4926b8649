"""The training loop. B sequences per step, T tokens each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..distillation.distiller import Distiller
from ..distillation.lessons import Part
from ..model.transformer import Transformer
from ..monitor.monitor import Monitor
from ..optim.clipping import Clipping
from ..optim.optimizer import Optimizers
from ..parallel.world import World
from ..run.checkpoints.best import Score
from ..run.counters import Counters
from ..run.folder import Run
from ..run.metrics import finite
from ..run.ranks.other_ranks import MetricsLog, saver_of
from ..system.device import autocast
from ..system.progress import Progress
from ..system.randomness import random_json, random_tensors
from .buffer_snapshot import Buffers
from .clock import Clock
from .curriculum import Curriculum
from .divergence import all_finite, divergence_error, require_convergence
from .figures.data_digest import digest_with
from .figures.evaluate import Evaluation
from .figures.heldout import Heldout
from .figures.record import StepResult, scores
from .figures.records import Records
from .figures.task_figures import TaskFigures
from .learning_progress import LearningProgress
from .lengths import Lengths
from .spike_guard import Guard


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
        self.guard = Guard(config.trainer, config.optimizer, (state or {}).get("guard"))
        self.clipping = Clipping(config.optimizer, (state or {}).get("clip_history", ()), self.placed.norm)
        self.curriculum = Curriculum(config, model)
        self.distiller = distiller or Distiller(config, None, model.embedding.weight.device)
        self.monitor = Monitor(config, optimizers, counters, (state or {}).get("monitor"))
        self.lengths = Lengths(config.trainer, config.sequence_length)
        self.buffers = Buffers(model)
        self.device = model.embedding.weight.device
        self.tasks = TaskFigures(corpus.tasks, self.device)
        self.sampling = LearningProgress(corpus, (state or {}).get("sampling"))
        self.shape = self.lengths.shape(counters, 0.0)
        estimated_save_seconds = 1e-8 * sum(p.numel() for p in model.parameters())  # until a save was measured
        self.saver = saver_of(config, run, display, saved, estimated_save_seconds, self.world)
        self.heldout = Heldout(
            config.trainer, config.sequence_length, run, model, corpus, self.placed, self.curriculum,
            precision=precision, log=display.log, step=counters.step, stop=stop,
        )  # fmt: skip
        self.clock = Clock(config, corpus, counters, self.saver.seconds)
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
            self.curriculum.apply(counters.step, done, self.monitor.losses())
            result = self.step()
            counters.step += 1
            step = counters.step
            now = time.monotonic()
            self.clock.step_seconds = now - started
            self.check(result)
            for message in self.monitor.messages(result.figures, self.run.resume_command):
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

    def step(self) -> StepResult:
        """Make one update from one batch of B sequences, in parts weighted by their scored tokens.

        A step that the guard skips changes nothing: no weight, no optimizer slot, no controller of a threshold.
        """
        trainer = self.config.trainer
        rows, length, first, part = self.shape
        if self.clock.begins_stage(self.shape):
            self.guard.reset()
        self.sampling.adapt(self.counters.step, lambda: self.lengths.read(self.counters))
        batch = self.corpus.batch(first, rows, length)  # that of all ranks, so each knows what is scored in it
        self.counters.tokens_digest = digest_with(self.counters.tokens_digest, batch)
        arrays = (*batch, self.corpus.tasks_of(first, rows, length))
        tensors = [torch.from_numpy(each).to(self.device, non_blocking=True) for each in arrays]  # (B, T) x 3, (B,)
        scored_in_all = tensors[2].sum().clamp(min=1)
        windows = torch.arange(first, first + rows)
        sums: dict[str, Tensor] = {}
        result = StepResult()
        watch = self.monitor.watch(rows)
        self.tasks.reset()
        self.buffers.copy()
        for whole in zip(*(torch.split(each, part) for each in [*tensors, windows]), strict=True):
            if not whole[2].any():
                continue  # a part of padding alone: nothing to learn from, and no mean over no tokens
            share = whole[2].sum() / scored_in_all
            ids, targets, scored, tasks, numbers = map(self.world.rows, whole)
            with autocast(self.device, self.precision):
                out = self.model(
                    ids, checkpoint_activations=trainer.checkpoint_activations, measures=watch is not None,
                    state_layers=self.distiller.state_layers, tasks=tasks,
                )  # fmt: skip
                loss, parts = self.curriculum.loss(out, targets, scored, self.tasks.weights(tasks))
                learned, more = self.distiller.loss(
                    self.model, out, Part(ids, targets, scored, numbers), self.counters.step
                )
            loss = loss if learned is None else loss + learned
            for name, value in {"loss": loss.detach(), **parts, **more, **out.usage(scored)}.items():
                sums[name] = sums.get(name, 0.0) + value.float() * share
            if not loss.isfinite():
                break
            (loss * share).backward()
            self.model.observe(out, scored)
            self.tasks.add(out, targets, scored, tasks)
            if watch is not None:
                watch.saw(out, scored, share)
        result.parts = {name: value.item() for name, value in sums.items()} | self.tasks.figures()
        loss_of_step = self.world.broadcast_float(result.parts.get("loss", 0.0))
        result.problem = self.guard.check(loss_of_step)
        if not result.skipped:
            self.placed.reduce()
            if watch is not None:
                watch.gradients()
            result.grad_norm = self.world.broadcast_float(self.clip())
            result.problem = self.guard.check(loss_of_step, result.grad_norm)
        if not result.skipped:
            if watch is None:
                self.optimizers.step()
            else:
                watch.update(self.optimizers.step)
                watch.agree(self.world.broadcast_floats)
                result.figures = self.monitor.judge(watch, self.clock.is_warm)
            self.distiller.step(self.optimizers.rate)
            self.clipping.accept(result.grad_norm)
            self.guard.accept(loss_of_step, result.grad_norm)
            self.sampling.observe(self.tasks.nats, self.tasks.tokens)
        else:
            self.buffers.restore()
        self.optimizers.zero_grad()
        self.distiller.zero_grad()
        self.counters.tokens_seen += tensors[0].numel()
        self.lengths.advance(self.counters, self.shape)
        return result

    def clip(self) -> float:
        """Balance the layers' rates by the gradient, clip it, and return its norm before clipping."""
        self.optimizers.balance()
        return self.clipping.clip(self.optimizers.names.items())

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
        self.guard.skip(step, result.problem, data)

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
            "guard": self.guard.state(),
            "clip_history": list(self.clipping.history),
            "monitor": self.monitor.state(),
        }
        if self.sampling.active:
            state["sampling"] = self.sampling.state()
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
        state = {"step": self.counters.step, "guard": self.guard.state()}
        record = {"step": self.counters.step, **{name: finite(value) for name, value in scores(evaluation).items()}}
        require_convergence(self.run, state, [record], self.config)
