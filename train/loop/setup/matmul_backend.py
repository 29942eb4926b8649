"""The choice of the matmul backend for float32 on a CPU: torch with the BLAS it was built with, or oneDNN.

Which one is faster depends on the processor and the shapes, so a run measures both on its own shapes before its first
step. It keeps that choice for all of its steps, because the two differ in their last bits.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....contract.errors import UserError
from ....contract.files import write_whole
from ...config.trainer import TrainerConfig
from ...model.experts.experts import run_experts
from ...model.experts.form import ExpertForm
from ...model.experts.moe import MoE
from ...model.linear import Linear, has_onednn, linear
from ...model.transformer import Transformer
from ...parallel.world import World
from ...run.checkpoints.checkpoint import Checkpoint
from ...run.identity import note_change
from ...system.cache_folder import digest_of
from ...system.device import processor_name
from ...system.progress import Progress

KINDS = ("linear", "experts")
TORCH, ONEDNN = "torch", "onednn"
GAIN = 0.9
"""oneDNN is chosen if it takes less than this share of torch's time: a smaller gain is noise, or not worth it."""
ROWS = 2048
"""The most rows that are measured: above that, the time per row no longer changes."""
ROUNDS, SECONDS = 7, 0.05
"""The most rounds for each shape (at least three are measured) and the time after which they end. A round measures both
backends; the fastest round counts. Measured is the processor time of one thread: on a busy machine, wall-clock time
depends on the other processes, and threads wait for each other."""

Choice = dict[str, str]
"""kind -> torch or onednn"""


def settle_matmul(
    model: Transformer,
    trainer: TrainerConfig,
    sequence_length: int,
    cache: Path,
    *,
    precision: str,
    checkpoint: Checkpoint | None,
    world: World,
    display: Progress,
) -> Choice:
    """Choose the backend for the whole run and all its ranks, and set it in the model; a resumed run keeps its choice.

    Measurements are stored in the cache folder, so that the same run begun again on this machine makes the same choice.

    Args:
        model: The model.
        trainer: Names the backend, and the size of a batch.
        sequence_length: Tokens of the longest sequence.
        cache: The cache folder.
        precision: `fp32` or `bf16`.
        checkpoint: The checkpoint that the run resumes from.
        world: The ranks.
        display: Shows notes.

    Raises:
        UserError: `trainer.matmul` is onednn, and the torch of a rank does not have it.
    """
    wanted = trainer.matmul
    applies = model.embedding.weight.device.type == "cpu" and precision == "fp32"
    available = applies and not world.max_over_ranks(int(not has_onednn()))
    before: Choice | None = None if checkpoint is None else checkpoint.state.get("matmul", dict.fromkeys(KINDS, TORCH))
    if wanted == ONEDNN and applies and not available:
        raise UserError(
            f"trainer.matmul is onednn, but this torch ({torch.__version__}) has no oneDNN; use torch: "
            "--set trainer.matmul=torch"
        )
    if wanted == ONEDNN and not applies:
        display.log("note: trainer.matmul is onednn, which is for fp32 on a CPU; torch is used here")
    if not available or wanted == TORCH:
        choice = dict.fromkeys(KINDS, TORCH)
    elif wanted == ONEDNN:
        choice = dict.fromkeys(KINDS, ONEDNN)
    elif before is not None:
        choice = before
    else:
        rows = trainer.batch_size // trainer.micro_batches * sequence_length // world.size
        choice = json.loads(
            world.broadcast_text(json.dumps(world.on_rank_zero(lambda: _measured_choice(model, rows, cache))))
        )
    if before is not None:
        note_change(display, "matmul", before, choice)
    model.use_onednn(**{kind: choice[kind] == ONEDNN for kind in KINDS})
    return choice


def kernels_message(identity: Mapping[str, Any]) -> str:
    """Describe the kernels for the first line of a run; nothing if all are torch's."""
    by_onednn = [{"linear": "linear layers"}.get(kind, kind) for kind in KINDS if identity["matmul"][kind] == ONEDNN]
    return (f", {' and '.join(by_onednn)} by oneDNN" if by_onednn else "") + (
        ", experts in C++" if identity["kernels"] == "C++" else ""
    )


def _measured_choice(model: Transformer, rows: int, cache: Path) -> Choice:
    """Return the choice for these shapes on this machine, measured now or by an earlier run."""
    cases = _cases(model, rows)
    key = [processor_name(), torch.__version__, sorted(map(repr, cases.items()))]
    path = cache / "matmul" / f"{digest_of(key)[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_bytes())["choice"]
        if stored.keys() == set(KINDS) and set(stored.values()) <= {TORCH, ONEDNN}:
            return dict(stored)
    seconds = measure(cases)
    choice = choose(seconds)
    _store(path, {"choice": choice, "seconds": seconds, "measured": key})
    return choice


def _store(path: Path, content: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # without it, the next run measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1) + "\n")


def choose(seconds: Mapping[str, Mapping[str, float]]) -> Choice:
    """Choose by kind -> backend -> seconds; torch for a kind that the model does not have."""
    return {
        kind: ONEDNN if seconds[kind][ONEDNN] < GAIN * seconds[kind][TORCH] else TORCH
        for kind in KINDS
    }  # fmt: skip


def _cases(model: Transformer, rows: int) -> Counter[tuple[Any, ...]]:
    """Count the products of a pass: (kind, rows, shapes of the weights, experts per token) -> number."""
    rows = max(1, min(ROWS, rows))
    cases: Counter[tuple[Any, ...]] = Counter()
    for module in model.modules():
        if isinstance(module, Linear):
            cases["linear", rows, (module.out_features, module.in_features)] += 1
        elif isinstance(module, MoE):
            per_token = model.config.ffn.experts_per_token
            cases["experts", rows, tuple(module.stack().shape), tuple(module.down.shape), per_token] += 1
    return cases


def measure(cases: Mapping[tuple[Any, ...], int]) -> dict[str, dict[str, float]]:
    """Measure a pass forward and backward: kind -> torch or onednn -> seconds, summed over the cases."""
    seconds = {kind: {TORCH: 0.0, ONEDNN: 0.0} for kind in KINDS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case, times in cases.items():
        run = _runner(case)
        best = {TORCH: float("inf"), ONEDNN: float("inf")}
        for backend in best:
            run(backend == ONEDNN)  # the first run builds the kernels
        end = time.thread_time() + SECONDS
        for done in range(ROUNDS):
            for backend in best:
                began = time.thread_time()
                run(backend == ONEDNN)
                best[backend] = min(best[backend], time.thread_time() - began)
            if done >= 2 and time.thread_time() > end:
                break
        for backend, each in best.items():
            seconds[case[0]][backend] += times * each
    torch.set_num_threads(threads)
    return seconds


def _runner(case: tuple[Any, ...]) -> Callable[[bool], Any]:
    """Return a function that runs a case forward and backward, by oneDNN or not.

    Its numbers come from a generator of its own, none of the run's.
    """
    kind, rows, *rest = case
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    if kind == "linear":
        (weight,) = (drawn(*shape) for shape in rest)
        x = drawn(rows, weight.shape[1])
        grad_out = torch.ones(rows, weight.shape[0])
        return lambda onednn: torch.autograd.grad(linear(x, weight, onednn), [x, weight], grad_out)
    gate_up, down, per_token = drawn(*rest[0]), drawn(*rest[1]), rest[2]
    x, weights = drawn(rows, gate_up.shape[1]), drawn(rows, len(gate_up))
    form = ExpertForm(gated=gate_up.shape[2] == 2 * down.shape[1])
    selected = torch.rand(rows, len(gate_up), generator=generator) < per_token / len(gate_up)
    grad_out = torch.ones_like(x)
    return lambda onednn: torch.autograd.grad(
        run_experts(x, weights, selected, gate_up, down, onednn, form), [x, weights, gate_up, down], grad_out
    )
