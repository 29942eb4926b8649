"""Tiny runs that are trained by one process and by two, and scenarios that only two can have.

WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=29500 python tests/support/ranks.py FOLDER PART, where PART is `short` or
`rest`. The second rank is a fork of the first, which has imported everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data import Corpus
from adaptive_lm.train.loop.clock import Clock
from adaptive_lm.train.loop.setup import matmul_backend as matmul
from adaptive_lm.train.loop.setup.compilation import has_compiler
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.model.linear import has_onednn
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.monitor.watch import Watch
from adaptive_lm.train.parallel.placement import Placement
from adaptive_lm.train.parallel.world import World, end, join, leave
from adaptive_lm.train.run.checkpoints import saver
from adaptive_lm.train.run.folder import named_run

WORDS = ["the", "a", "sun", "moon", "river", "stone", "rises", "falls", "turns", "sleeps", "over", "under", "night"]
BASE: dict[str, Any] = {
    "data": {"sources": ["rivers.txt"], "cache_dir": "cache"},
    "tokenizer": {"kind": "chars"},
    "model": {
        "context_length": 32,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "ffn": {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6},
    },
    "trainer": {
        "steps": 8,
        "max_seconds": None,
        "batch_size": 8,
        "eval_every": 4,
        "eval_tokens": 64,
        "final_eval_tokens": 200,
        "checkpoint_every": 4,
        "log_every": 1,
        "threads": 1,
        "precision": "fp32",
        "matmul": "torch",
        "device": "cpu",
        "tensorboard": False,
        "routing_snapshots": 0,
    },
}
SMOOTH = {"optimizer": {"kind": "adamw", "adamw_lr": 3e-3}}
"""Without the bfloat16 of Newton-Schulz, which turns a last bit into a hundredth of an update."""
RICH: dict[str, Any] = {
    **SMOOTH,
    "model": {
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "tie_embeddings": True,
        "attention": {"window": 16, "window_kind": "entropy", "window_least": 4},
        "heads": {"routing": "top_p", "shared_heads": 1, "controller": "pi", "scope": "model"},
        "ffn": {"controller": "learned", "per_token": True, "router_top_p": 0.5, "shared_expert_dim": 8},
        "depth": {"layers_share": 0.7, "controller": "pi", "layer_dropout": 0.3, "exit_layers": [0, 1]},
    },
    "losses": {"router_entropy_loss": 1e-3},
    "trainer": {"micro_batches": 2, "steps": 5, "routing_snapshots": 64},
    "data": {"pack": "documents"},
}
LENGTHS = {"optimizer": {"kind": "lars", "bidirectional": True, "clip": "agc"}, "trainer": {"steps": 6}}
USUAL = {"optimizer": {"kind": "sgd", "clip": "percentile", "clip_percentile": 50.0}, "trainer": {"steps": 6}}
ACTING = {**SMOOTH, "schedule": {"warmup_steps": 1}}
ACTS: dict[str, dict[str, Any]] = {
    "slowed": {
        **ACTING,
        "monitor": {"act": "lr", "patience": 2, "grad_norm": [None, 0.2], "update_ratio": [None, None]},
    },
    "grown": {
        **ACTING,
        "monitor": {"act": "batch", "patience": 2, "noise_factor": 0.01},
        "trainer": {"micro_batches": 2},
    },
    "spread": {
        **ACTING,
        "monitor": {"router_act": "balance", "router_entropy": 1.0, "patience": 2, "router_steps": 3},
    },
}
"""Monitors that act on the rate of a layer, on the batch, or on the losses that spread routers."""
ONEDNN = {**SMOOTH, "trainer": {"steps": 3, "matmul": "onednn"}}
COMPILED = {**RICH, "trainer": {**RICH["trainer"], "compile": True}}
DRAWN: dict[str, Any] = {
    **SMOOTH,
    "model": {"ffn": {"most_experts": 3, "random_experts": [1, 3], "controller": "fixed", "router_top_p": 1.0}},
    "trainer": {"steps": 3, "micro_batches": 2},
}
"""Each token draws how many of its experts may run."""
TASKS: dict[str, Any] = {
    **SMOOTH,
    "data": {
        "tasks": [
            {"name": "a", "sources": ["rivers.txt"], "token": "<|a|>", "loss_weight": 0.5},
            {"name": "b", "sources": ["rivers.txt"]},
        ],
        "sampling": {"by": "progress", "every": 2},
    },
    "trainer": {"micro_batches": 2},
}
"""Tasks whose shares follow the losses of all ranks."""
KINDS = ("replicate", "shard", "experts")


def over(sections: dict[str, Any], kind: str) -> dict[str, Any]:
    return {**sections, "trainer": {**sections.get("trainer", {}), "parallel": kind}}


TAUGHT: dict[str, Any] = {
    **SMOOTH,
    "distillation": {"teacher": {"model": "elder"}, "top_k": 5, "divergence": "mix", "temperature": 2.0},
    "model": {"num_layers": 3, "depth": {"layers_share": 0.8, "exit_layers": [0]}},
    "self_distillation": {"exits": 0.5, "dials": 1.0},
    "data": {"pack": "documents"},
}
SHOWN: dict[str, Any] = {
    **SMOOTH,
    "distillation": {"teacher": {"model": "elder"}, "top_k": 0, "hidden_layers": [[0, 1], [1, 1]]},
    "trainer": {"micro_batches": 2},
}
"""Two runs that learn from `elder`: from stored outputs, and from a teacher that runs in every step."""
SAME: dict[str, dict[str, Any]] = {
    **{f"muon-{kind}": over({}, kind) for kind in KINDS},
    **{f"rich-{kind}": over(RICH, kind) for kind in KINDS},
    **({"rich-compiled": over(COMPILED, "shard")} if has_compiler() else {}),
    **{f"drawn-{kind}": over(DRAWN, kind) for kind in ("replicate", "experts")},
    "lars-shard": over(LENGTHS, "shard"),
    "lars-experts": over(LENGTHS, "experts"),
    "sgd-shard": over(USUAL, "shard"),
    "recomputed-shard": over({**SMOOTH, "trainer": {"steps": 3, "checkpoint_activations": True}}, "shard"),
    "recomputed-experts": over({**SMOOTH, "trainer": {"steps": 3, "checkpoint_activations": True}}, "experts"),
    **{f"onednn-{kind}": over(ONEDNN, kind) for kind in KINDS if has_onednn()},
    **{f"slowed-{kind}": over(ACTS["slowed"], kind) for kind in KINDS},
    "tasks-replicate": over(TASKS, "replicate"),
    "grown-replicate": over(ACTS["grown"], "replicate"),  # the others hold no whole gradient, and are refused
    **{f"spread-{kind}": over(ACTS["spread"], kind) for kind in KINDS},
    **{f"taught-{kind}": over(TAUGHT, kind) for kind in KINDS},
    **{f"shown-{kind}": over(SHOWN, kind) for kind in ("replicate", "shard")},
}
"""Trained by one process, which compiles nothing, and by two."""


SHORT = ("rich-experts", "spread-replicate")
"""Those of SAME that `make test` trains."""
SHORT_KIND = "shard"
"""The kind that `make test` stops and resumes with another number of ranks."""


def config(sections: dict[str, Any]) -> RunConfig:
    return make_config(BASE, [sections])


def one_of(name: str) -> str:
    """Name the run of one process that a run of two is compared with; `parallel` does nothing in a process alone."""
    return name.rpartition("-")[0]


def write_text(folder: Path) -> None:
    generator = random.Random(0)
    lines = [" ".join(generator.choices(WORDS, k=8)) + "." for _ in range(180)]
    (folder / "rivers.txt").write_text("\n".join(lines) + "\n", "utf-8")


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


def attempt(what: str, do: Callable[[], Any], folder: Path) -> None:
    """Write the outcome on this rank: the kind of error and its message, or step and exit code."""
    try:
        done = do()
        outcome = {"step": done.step, "exit_code": done.exit_code} if done is not None else {}
    except UserError as error:
        outcome = {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    (folder / f"{what}.{World().rank}.json").write_text(json.dumps(outcome))


def digests_at_the_end(folder: Path) -> Callable[[Trainer], Any]:
    """Make a `Trainer.finish` that first writes the digest of this rank's final state."""
    finish = Trainer.finish

    def noted(self: Trainer) -> Any:
        digest = hashlib.sha256()
        for tensor in [*self.placed.model_state().values(), *self.optimizers.state_tensors().values()]:
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.update.monitor.state(), self.counters.growth, self.counters.windows]).encode())
        (folder / f"{self.run.name}.{self.world.rank}.digest").write_text(digest.hexdigest())
        return finish(self)

    return noted


def poison() -> tuple[Any, Any]:
    """Make a forward pass that is NaN on rank 1 the third time, and an infinite gradient there in the sixth step."""
    forward, reduce, calls = Transformer.forward, Placement.reduce, {"forward": 0, "reduce": 0}

    def nan(self: Transformer, *arguments: Any, **options: Any) -> Any:
        out = forward(self, *arguments, **options)
        calls["forward"] += self.training
        return out._replace(logits=out.logits * float("nan")) if calls["forward"] == 3 and World().rank else out

    def inf(self: Placement) -> None:
        calls["reduce"] += 1
        if calls["reduce"] == 5 and World().rank:  # the third step was skipped
            weight = next(weight for weight in self.weights.values() if weight.grad is not None)
            assert weight.grad is not None
            weight.grad.flatten()[0] = float("inf")
        reduce(self)

    return nan, inf


def misread(gradients: Callable[[Watch], None]) -> Callable[[Watch], None]:
    """Make a `Watch.gradients` with which rank 1 measures figures far inside all bands, and hardly any noise."""

    def measured(self: Watch) -> None:
        gradients(self)
        if World().rank:
            self.figures = dict.fromkeys(self.figures, 1.0) | {
                name: 1e-3 for name in self.figures if name.startswith("grad_norm")
            }
            self.noise = self.noise and (self.noise[0], -1.0)

    return measured


def note_choice(what: str, folder: Path) -> Callable[..., None]:
    """Make a `Transformer.use_onednn` that writes its arguments."""
    use = Transformer.use_onednn

    def noted(self: Transformer, **choice: bool) -> None:
        (folder / f"{what}.{World().rank}.json").write_text(json.dumps(choice))
        use(self, **choice)

    return noted


def opinion(_: object) -> dict[str, dict[str, float]]:
    """Replace `matmul.measure`: the first rank measures oneDNN twice as fast, the other twice as slow."""
    return {kind: {"torch": 1.0, "onednn": 0.5 if World().is_first else 2.0} for kind in matmul.KINDS}


def kill_at(step: int, number: int) -> Any:
    """Make a `Corpus.batch` with which rank 1 alone gets a signal while it draws the batch of a step (0, 1, ...)."""
    batch, calls = Corpus.batch, 0

    def draw(self: Corpus, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step + 1 and World().rank:
            os.kill(os.getpid(), number)
        return batch(self, *arguments, **options)

    return draw


def train_and_resume(folder: Path, names: Iterable[str], kinds: Iterable[str]) -> None:
    """Train runs of SAME; train half of a run of each kind, and the other half of one that a single process began."""
    with patched(Trainer, "finish", digests_at_the_end(folder)):
        for name in names:
            sections = SAME[name]
            training.begin(config(sections), named_run(name))
            if sections["trainer"].get("compile"):
                counters = torch._dynamo.utils.counters
                compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": dict(counters["graph_break"])}
                (folder / f"graphs.{World().rank}.json").write_text(json.dumps(compiled))
        for kind in kinds:
            training.begin(config(over({}, kind)), named_run(f"half-{kind}"), stop_at=4)
            training.resume(named_run(f"one-{kind}"), [over({}, kind)])


def short(folder: Path) -> None:
    """Run the scenarios of `make test`."""
    train_and_resume(folder, SHORT, [SHORT_KIND])
    with patched(Trainer, "finish", digests_at_the_end(folder)):
        nan, inf = poison()
        with patched(Transformer, "forward", nan), patched(Placement, "reduce", inf):
            attempt("nan", lambda: training.begin(config(SMOOTH), named_run("nan")), folder)
    with patched(Corpus, "batch", kill_at(2, signal.SIGTERM)):
        attempt("sigterm", lambda: training.begin(config({}), named_run("sigterm")), folder)

    def lonely() -> None:
        if World().rank:
            raise UserError("this machine has no such file")

    attempt("lonely", lambda: World().run_together(lonely), folder)


def rest(folder: Path) -> None:
    """Run all other scenarios."""
    train_and_resume(folder, [name for name in SAME if name not in SHORT], [k for k in KINDS if k != SHORT_KIND])
    with patched(Trainer, "finish", digests_at_the_end(folder)):
        for name, sections in ACTS.items():
            with patched(Watch, "gradients", misread(Watch.gradients)):
                training.begin(config(sections), named_run(f"misread-{name}"))
            training.begin(config(sections), named_run(f"half-{name}"), stop_at=4)
    for what, there in {"opinions": has_onednn, "nowhere": lambda: World().is_first}.items():
        measured = config({"trainer": {"matmul": "auto", "steps": 1}, "data": {"cache_dir": what}})
        stands_in = patched(matmul, "measure", opinion), patched(matmul, "has_onednn", there)
        with stands_in[0], stands_in[1], patched(Transformer, "use_onednn", note_choice(what, folder)):
            training.begin(measured, named_run(what))
    with patched(Clock, "complete", lambda self: self.counters.step >= (8 if World().is_first else 2)):
        attempt("clock", lambda: training.begin(config({}), named_run("clock")), folder)
    attempt("exists", lambda: training.begin(config({}), named_run("clock")), folder)
    attempt("divides", lambda: training.begin(config({"trainer": {"batch_size": 7}}), named_run("divides")), folder)
    for what, sections in {
        "five": {"model": {"ffn": {"num_experts": 5}}},
        "dense": {"model": {"ffn": {"routing": "dense"}}},
        "compiled": {"trainer": {"compile": True}},
    }.items():
        attempt(what, lambda each=sections: training.begin(config(over(each, "experts")), named_run("no")), folder)
    repeated = {"model": {"num_layers": 4, "recursion": {"times": 2}}}
    attempt("repeated", lambda: training.begin(config(over(repeated, "shard")), named_run("no")), folder)

    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    for save in ("blocking", "background"):
        with patched(saver, "save_checkpoint", full):
            attempt(
                f"full-{save}",
                lambda each=save: training.begin(config({"trainer": {"save": each}}), named_run(f"full-{each}")),
                folder,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, part = Path(sys.argv[1]), {"short": short, "rest": rest}[sys.argv[2]]
    other = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(int(not other))
    join()
    os.chdir(place)
    part(place)
    leave()
    if other and os.waitpid(other, 0)[1]:
        end(1)
    end(0)
