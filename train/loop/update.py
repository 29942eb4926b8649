"""The update of the weights from one batch. B sequences, T tokens each."""

from __future__ import annotations

from collections.abc import Mapping
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
from ..run.counters import Counters
from ..system.device import autocast
from .buffer_snapshot import Buffers
from .clock import Clock
from .curriculum import Curriculum
from .figures.data_digest import digest_with
from .figures.record import StepResult
from .figures.task_figures import TaskFigures
from .learning_progress import LearningProgress
from .lengths import Lengths, Shape
from .spike_guard import Guard


class Update:
    """Changes the weights by one batch at a time."""

    def __init__(
        self,
        config: RunConfig,
        model: Transformer,
        corpus: Corpus,
        optimizers: Optimizers,
        counters: Counters,
        lengths: Lengths,
        clock: Clock,
        curriculum: Curriculum,
        distiller: Distiller,
        *,
        precision: str,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up what lasts from one update to the next; `state` is that of the checkpoint to resume from."""
        self.config, self.model, self.corpus, self.optimizers = config, model, corpus, optimizers
        self.counters, self.lengths, self.clock = counters, lengths, clock
        self.curriculum, self.distiller = curriculum, distiller
        self.precision, self.device = precision, model.embedding.weight.device
        self.world = World()
        self.placed = optimizers.placed
        before = state or {}
        self.guard = Guard(config.trainer, config.optimizer, before.get("guard"))
        self.clipping = Clipping(config.optimizer, before.get("clip_history", ()), self.placed.norm)
        self.monitor = Monitor(config, optimizers, counters, before.get("monitor"))
        self.buffers = Buffers(model)
        self.tasks = TaskFigures(corpus.tasks, self.device)
        self.sampling = LearningProgress(corpus, before.get("sampling"))

    def step(self, shape: Shape) -> StepResult:
        """Make one update from one batch of B sequences of a shape, in parts weighted by their scored tokens.

        A step that the guard skips changes nothing: no weight, no optimizer slot, no controller of a threshold.
        """
        trainer = self.config.trainer
        rows, length, first, part = shape
        if self.clock.begins_stage(shape):
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
        self.lengths.advance(self.counters, shape)
        return result

    def clip(self) -> float:
        """Balance the layers' rates by the gradient, clip it, and return its norm before clipping."""
        self.optimizers.balance()
        return self.clipping.clip(self.optimizers.names.items())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, besides the tensors."""
        state = {
            "guard": self.guard.state(),
            "clip_history": list(self.clipping.history),
            "monitor": self.monitor.state(),
        }
        return state | {"sampling": self.sampling.state()} if self.sampling.active else state
