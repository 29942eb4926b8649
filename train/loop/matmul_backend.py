"""Who multiplies the matrices of a run in float32 on a CPU: torch, by the BLAS it was built with, or oneDNN.

Which is faster is a matter of the processor and of the shapes, so that a run measures both before its first step, on
its own shapes; it keeps what it took for as long as it lives, for the two differ in their last bits.
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

from ...contract.errors import UserError
from ...contract.files import write_whole
from ..config.run_config import RunConfig
from ..model.experts import run_experts
from ..model.linear import Linear, has_onednn, linear
from ..model.moe import MoE
from ..model.transformer import Transformer
from ..parallel.world import World
from ..run.checkpoint import Checkpoint
from ..run.identity import note_change
from ..system.cache_folder import cache_folder, digest_of
from ..system.device import processor_name
from ..system.progress import Progress

KINDS = ("linear", "experts")
TORCH, ONEDNN = "torch", "onednn"
GAIN = 0.9
"""oneDNN is taken where it needs less than this share of torch's time: what is nearer is noise, or not worth it."""
ROWS = 2048
"""Most rows that are measured: more take as long each."""
ROUNDS, SECONDS = 7, 0.05
"""Of each shape, three rounds at least: both ways in turn, of which the fastest counts. In time of
the processor, by one thread: on a busy machine a clock counts who else has it, and threads wait for each other."""

Choice = dict[str, str]
"""kind -> torch or onednn"""


def settle_matmul(
    model: Transformer, config: RunConfig, precision: str, found: Checkpoint | None, world: World, display: Progress
) -> Choice:
    """Chooses for the run, once and for all its ranks, and tells the model; a resumed run keeps what it had.

    What was measured is kept in the cache folder, so that the same run begun again on this machine is the same run.

    Raises:
        UserError: `trainer.matmul` names oneDNN, and a rank has none.
    """
    wanted = config.trainer.matmul
    serves = model.embedding.weight.device.type == "cpu" and precision == "fp32"
    there = serves and not world.max_over_ranks(int(not has_onednn()))
    before: Choice | None = None if found is None else found.state.get("matmul", dict.fromkeys(KINDS, TORCH))
    if wanted == ONEDNN and serves and not there:
        raise UserError(
            f"trainer.matmul is onednn, but this torch ({torch.__version__}) has none; leave it to torch: "
            "--set trainer.matmul=torch"
        )
    if wanted == ONEDNN and not serves:
        display.log("note: trainer.matmul is onednn, which is for fp32 on a CPU; torch multiplies here")
    if not there or wanted == TORCH:
        choice = dict.fromkeys(KINDS, TORCH)
    elif wanted == ONEDNN:
        choice = dict.fromkeys(KINDS, ONEDNN)
    elif before is not None:
        choice = before
    else:
        choice = json.loads(
            world.broadcast_text(json.dumps(world.on_rank_zero(lambda: _remembered(model, config, world.size))))
        )
    if before is not None:
        note_change(display, "matmul", before, choice)
    model.use_onednn(**{kind: choice[kind] == ONEDNN for kind in KINDS})
    return choice


def words(identity: Mapping[str, Any]) -> str:
    """What the line at the start of a run says of who multiplies; nothing where it is torch."""
    by_onednn = [{"linear": "linear layers"}.get(kind, kind) for kind in KINDS if identity["matmul"][kind] == ONEDNN]
    return (f", {' and '.join(by_onednn)} by oneDNN" if by_onednn else "") + (
        ", experts in C++" if identity["kernels"] == "C++" else ""
    )


def _remembered(model: Transformer, config: RunConfig, ranks: int) -> Choice:
    """What was measured for these shapes on this machine, by this run or one before it."""
    cases = _cases(model, config, ranks)
    asked = [processor_name(), torch.__version__, sorted(map(repr, cases.items()))]
    path = cache_folder(config.data.cache_dir) / "matmul" / f"{digest_of(asked)[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())["choice"]
        if kept.keys() == set(KINDS) and set(kept.values()) <= {TORCH, ONEDNN}:
            return dict(kept)
    seconds = measure(cases)
    choice = choose(seconds)
    _keep(path, {"choice": choice, "seconds": seconds, "measured": asked})
    return choice


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is measured again, then
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1) + "\n")


def choose(seconds: Mapping[str, Mapping[str, float]]) -> Choice:
    """kind -> who -> seconds of one pass forward and backward; a kind that the model has not is torch's."""
    return {
        kind: ONEDNN if seconds[kind][ONEDNN] < GAIN * seconds[kind][TORCH] else TORCH
        for kind in KINDS
    }  # fmt: skip


def _cases(model: Transformer, config: RunConfig, ranks: int) -> Counter[tuple[Any, ...]]:
    """(kind, rows, shapes of the weights, chosen experts a token) -> how many of a pass are of that kind."""
    trainer = config.trainer
    rows = trainer.batch_size // trainer.micro_batches * config.sequence_length // ranks
    rows = max(1, min(ROWS, rows))
    cases: Counter[tuple[Any, ...]] = Counter()
    for module in model.modules():
        if isinstance(module, Linear):
            cases["linear", rows, (module.out_features, module.in_features)] += 1
        elif isinstance(module, MoE):
            a_token = config.model.ffn.experts_per_token
            cases["experts", rows, tuple(module.gate_up.shape), tuple(module.down.shape), a_token] += 1
    return cases


def measure(cases: Mapping[tuple[Any, ...], int]) -> dict[str, dict[str, float]]:
    """Seconds of a pass forward and backward: kind -> torch or onednn -> sum over the cases."""
    seconds = {kind: {TORCH: 0.0, ONEDNN: 0.0} for kind in KINDS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case, times in cases.items():
        run = _made(case)
        best = {TORCH: float("inf"), ONEDNN: float("inf")}
        for who in best:
            run(who == ONEDNN)  # once for the kernels to be made
        end = time.thread_time() + SECONDS
        for done in range(ROUNDS):
            for who in best:
                began = time.thread_time()
                run(who == ONEDNN)
                best[who] = min(best[who], time.thread_time() - began)
            if done >= 2 and time.thread_time() > end:
                break
        for who, each in best.items():
            seconds[case[0]][who] += times * each
    torch.set_num_threads(threads)
    return seconds


def _made(case: tuple[Any, ...]) -> Callable[[bool], Any]:
    """What runs a case forward and backward, by oneDNN or not. Its numbers come from no generator of the run."""
    kind, rows, *rest = case
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    if kind == "linear":
        (weight,) = (drawn(*shape) for shape in rest)
        x = drawn(rows, weight.shape[1])
        of_out = torch.ones(rows, weight.shape[0])
        return lambda onednn: torch.autograd.grad(linear(x, weight, onednn), [x, weight], of_out)
    gate_up, down, a_token = drawn(*rest[0]), drawn(*rest[1]), rest[2]
    x, weights = drawn(rows, gate_up.shape[1]), drawn(rows, len(gate_up))
    selected = torch.rand(rows, len(gate_up), generator=generator) < a_token / len(gate_up)
    of_out = torch.ones_like(x)
    return lambda onednn: torch.autograd.grad(
        run_experts(x, weights, selected, gate_up, down, onednn), [x, weights, gate_up, down], of_out
    )
