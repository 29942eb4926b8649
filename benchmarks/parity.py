"""Do torch and the exported graph decide alike, for every mechanism alone and for ten combinations of them?

For each, a small model with random weights of which none is silent is written as a run, its controllers look at the
text once, and it is exported by the same code as `adaptive export`. Then 10,000 tokens are compared with torch as
prompts, and 2,000 of them again one at a time, at thresholds in the thick of the scores: what the controllers hold, and
exits that three tokens in ten take. Decisions must be equal, near ties under 1 %. The exit code is 1 if one is not:

    python benchmarks/parity.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from adaptive_lm.export.model import heads
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.parity import TOLERANCE, Comparison, Pass, compare, prompt_pass, token_pass, torch_pass
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.tokenizers import byte_tokenizer
from adaptive_lm.train.model import ThresholdTensors, Transformer
from adaptive_lm.train.model.norm import RMSNorm
from adaptive_lm.train.run.checkpoint import save_checkpoint

MODEL: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": 256,
    "dim": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn": {"num_experts": 8, "expert_dim": 32, "experts_per_token": 2},
}
PROMPT = 250  # tokens of one text; a ring of a window of 32 turns two to three times in it
LEAVE = 0.7  # share of the tokens that an exit keeps


def ffn(**changes: object) -> dict[str, Any]:
    return {**MODEL["ffn"], **changes}


TOP_P = {"routing": "top_p", "heads_per_token": 2.5}
SHARED = {"routing": "top_p", "shared_heads": 1, "heads_per_token": 2.5, "per_token": True}
ADAPTIVE = {"routing": "adaptive", "heads_per_token": 2, "most_heads": 3}
COPE = {"positions": "cope", "max_positions": 16}
MIXED = {"positions": ["rope", "cope", "none", "cope"], "max_positions": 16}
LEARNED = {"window": [0, 32, 24, 48], "window_kind": "learned", "window_least": 16}
DEPTH = {"layers_share": 0.6}
EXITS = {"exit_layers": [0, 2]}
BOTH = {**DEPTH, "exit_layers": [0, 1, 2]}
NONE = {"skipped_kv": "none"}
ALONE: dict[str, dict[str, Any]] = {
    "experts top-p": {},
    "experts top-k": {"ffn": ffn(routing="top_k")},
    "experts per token": {"ffn": ffn(per_token=True)},
    "experts learned level": {"ffn": ffn(controller="learned", router_top_p={"first": 0.3, "last": 0.5})},
    "heads top-k": {"heads": {"routing": "top_k", "shared_heads": 1, "heads_per_token": 3}},
    "heads top-p": {"heads": TOP_P},
    "heads shared, per token": {"heads": SHARED},
    "heads adaptive": {"heads": ADAPTIVE},
    "heads adaptive, pi": {"heads": {**ADAPTIVE, "controller": "pi", "scope": "model"}},
    "cope": {"attention": COPE},
    "no positions": {"attention": {"positions": "none"}},
    "window fixed": {"attention": {"window": 32}},
    "window by length": {"attention": {"window": 48, "window_kind": "length", "window_share": 0.25}},
    "window by entropy": {"attention": {"window": 48, "window_kind": "entropy"}},
    "window learned": {"attention": LEARNED},
    "depth, none": {"depth": {**DEPTH, **NONE}},
    "depth, project": {"depth": DEPTH},
    "depth per token": {"depth": {**DEPTH, "per_token": True}},
    "exit top_prob": {"depth": EXITS},
    "exit margin": {"depth": {**EXITS, "exit_criterion": "margin"}},
    "exit entropy": {"depth": {**EXITS, "exit_criterion": "entropy", **NONE}},
    "exit router": {"depth": {**EXITS, "exit_criterion": "router"}},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "heads + cope": {"heads": SHARED, "attention": COPE},
    "heads + windows": {"heads": TOP_P, "attention": LEARNED},
    "cope + windows": {"attention": {**COPE, "window": 32}},
    "cope + depth, project": {"attention": COPE, "depth": BOTH},
    "cope + depth, none": {"attention": COPE, "depth": {**BOTH, **NONE}},
    "windows + exits, none": {
        "attention": {"window": 48, "window_kind": "length", "window_share": 0.25},
        "depth": {**EXITS, **NONE, "exit_criterion": "entropy"},
    },
    "cope + windows + depth": {"attention": {**COPE, "window": [32, 24, 0, 40]}, "depth": BOTH},
    "adaptive heads + factors": {
        "heads": ADAPTIVE,
        "ffn": ffn(per_token=True, shared_expert_dim=16),
        "depth": {**DEPTH, **NONE, "per_token": True},
    },
    "everything, project": {
        "heads": SHARED,
        "attention": {**MIXED, **LEARNED},
        "ffn": ffn(per_token=True),
        "depth": {**BOTH, "per_token": True, "exit_criterion": "margin"},
        "tie_embeddings": True,
    },
    "everything, none": {
        "heads": ADAPTIVE,
        "attention": {**MIXED, **LEARNED},
        "ffn": ffn(controller="pi"),
        "depth": {**BOTH, **NONE, "per_token": True, "exit_criterion": "router"},
    },
}


@click.command()
@click.option("--tokens", default=10_000, show_default=True)
@click.option("--decoded", default=2_000, show_default=True, help="Of these, how many also one at a time.")
@click.option("--only", default="", help="Those whose name holds this.")
def main(tokens: int, decoded: int, only: str) -> None:
    """Print one line for each mechanism and combination; fail if torch and graph differ anywhere."""
    torch.set_num_threads(1)
    kinds = {**ALONE, **TOGETHER}
    runs = [(name, kind, False) for name, kind in kinds.items()]
    runs += [(f"{name}, sliced", kind, True) for name, kind in kinds.items() if "heads" in kind]
    columns = {"tokens": 7, "near ties": 10, "flipped": 8, "wrong": 6, "against torch": 14, "one at a time": 14}
    click.echo(" " * 34 + "".join(f" {column:>{width}}" for column, width in columns.items()) + "  used")
    begin, failed = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, kind, sliced) in enumerate(runs):
            if only not in name:
                continue
            heads.SLICED_FROM["fp32"] = 0 if sliced else 2**62
            source = read(_write(Path(folder) / f"run-{number}", kind, seed=number))
            prompts, singles, used = _compare(source, Path(folder) / f"model-{number}", tokens, decoded)
            passed = prompts.passes(TOLERANCE["fp32"]) and singles.passes(TOLERANCE["fp32"])
            failed += [] if passed else [name]
            ties = f"{prompts.near_ties / prompts.tokens:.2%}"
            click.echo(
                f"{name:34} {prompts.tokens:7} {ties:>10} {prompts.flipped:8} "
                f"{prompts.wrong_decisions + singles.wrong_decisions:6} {prompts.largest_difference:14.1e} "
                f"{singles.largest_difference:14.1e}  {used}{'' if passed else '  FAILED'}"
            )
            for failure in [*prompts.failures, *singles.failures][:2]:
                click.echo(f"    {failure}")
    click.echo(
        f"{time.perf_counter() - begin:.0f} seconds; " + (f"FAILED: {', '.join(failed)}" if failed else "all equal")
    )
    sys.exit(bool(failed))


def _write(run: Path, kind: Mapping[str, Any], seed: int) -> Path:
    """A run of no steps, complete but for its training."""
    tokenizer, text = byte_tokenizer(), files("adaptive_lm.train.data.builtin").joinpath("facts.jsonl").read_text()
    config = make_config({"model": {**MODEL, **kind}, "tokenizer": {"kind": "bytes"}})
    model = Transformer(config.model)
    _season(model, seed)
    save_checkpoint(run / "checkpoints", 1, config, model.state_dict(), {"none": torch.zeros(1)}, {})
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (run / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (run / "heldout.txt").write_text(text[:60_000], encoding="utf-8")
    return run


@torch.no_grad()
def _season(model: Transformer, seed: int) -> None:
    """Redraws every weight, so that none is silent, even or 1; windows that attention would find are put by hand.

    Contextual positions are drawn at a third of the others' scale. At theirs, where neighbours differ by 1.7 in every
    score, torch in float32 is itself 1e-4 away from torch in float64, and no tolerance could tell the graph's share.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {module.weight for module in model.modules() if isinstance(module, RMSNorm)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight in norms:
            weight.copy_(1 + 0.3 * noise)
        elif weight.ndim == 0:
            weight.add_(0.2 * noise)
        else:
            inputs = weight.shape[-1] if weight.ndim < 3 else weight.shape[1]
            scale = 2.5 if name.startswith(("head", "embedding")) else 0.4 if "position" in name else 1.2
            weight.copy_(scale * inputs**-0.5 * noise)
    for name, window in model.named_buffers():
        if name.endswith("window_controller.window"):
            window.fill_(20 + 7 * int(name.split(".")[1]))


def _compare(source: Source, folder: Path, tokens: int, decoded: int) -> tuple[Comparison, Comparison, str]:
    folder.mkdir()
    session = Session(folder, write_files(source, folder, "fp32"), device="cpu", threads=1, verify=False)
    ids = source.heldout_ids(tokens)
    texts = list(ids[:, : ids.shape[1] // PROMPT * PROMPT].view(-1, 1, PROMPT))
    limits = _busy(source, torch.cat(texts[:8]))
    prompts, singles, judged = Comparison(), Comparison(), []
    for number, text in enumerate(texts):
        judge, prompt = torch_pass(source.model, text, limits), prompt_pass(session, text, limits)
        compare(prompts, judge, prompt)
        judged.append(judge)
        if number * PROMPT < decoded:
            compare(singles, replace(prompt, margins=judge.margins), token_pass(session, text, limits))
    return prompts, singles, _used(source, judged)


@torch.no_grad()
def _busy(source: Source, texts: Tensor) -> ThresholdTensors:
    """What the controllers hold, and at each exit the confidence that LEAVE of the tokens stay below."""
    limits = source.thresholds()
    found = source.model(texts, limits).exit_confidence
    leave = limits.exit_threshold.clone()
    for layer, confidence in found.items():
        leave[layer] = confidence.flatten().quantile(LEAVE)
    return limits._replace(exit_threshold=leave)


def _used(source: Source, judged: list[Pass]) -> str:
    """Means over the layers that a token ran: of the choices that this model has."""
    config = source.config
    runs = np.concatenate([one.layers_run for one in judged], 1)  # (L, N)
    said = []
    if config.ffn.routing != "dense":
        experts = np.concatenate([one.selected_experts for one in judged], 1)
        said.append(f"{experts.sum(-1)[runs].mean():.2f} experts")
    if config.heads.routing != "all":
        chosen = np.concatenate([one.selected_heads for one in judged], 1)
        said.append(f"{chosen.sum(-1)[runs].mean():.2f} heads")
    if config.adapts_depth:
        said.append(f"{runs.sum(0).mean():.2f} layers")
    if config.has_windows:
        windows = np.concatenate([one.windows for one in judged], 1)
        said.append(f"window {windows[windows > 0].mean():.0f}")
    return ", ".join(said)


if __name__ == "__main__":
    main()
