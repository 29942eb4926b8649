"""Compare the exported graph with torch, for every mechanism alone and for ten combinations of them.

    python benchmarks/parity.py
    python benchmarks/parity.py --target cpu --only mixer

Each model is small, with random weights none of which is close to 0. It is written as a run, its controllers see the
text once, and it is exported by the code of `adaptive export`. Then 10,000 tokens are compared with torch as prompts,
and 2,000 of them again one at a time. The thresholds are in the middle of the scores: those of the controllers, and
exits that three of ten tokens take. All decisions must be equal and near ties below 1 %; otherwise the exit code is 1.
"""

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

from adaptive_lm.export.model.attention.heads import SLICED_FROM
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.parity import STATES_TOLERANCE, TOLERANCE, Comparison, compare
from adaptive_lm.export.proof.passes import Pass, prompt_pass, token_pass, torch_pass
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.model import ThresholdTensors, Transformer
from adaptive_lm.train.model.norm import RMSNorm
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint

MODEL: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": 256,
    "dim": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn": {"num_experts": 8, "expert_dim": 32, "experts_per_token": 2},
}
PROMPT = 250  # tokens of one text; the ring of a window of 32 is overwritten two to three times in it
LEAVE = 0.7  # share of the tokens that stay at an exit


def ffn(**changes: object) -> dict[str, Any]:
    """Return the FFN section of MODEL with other fields."""
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
MIXERS = ("retnet", "mamba2", "gated_delta", "rwkv7")
ALL_DEPTH = {**BOTH, **NONE, "per_token": True, "exit_criterion": "router"}
RECURRENT: dict[str, dict[str, Any]] = {
    **{f"mixer {kind}": {"mixers": kind} for kind in MIXERS},
    **{f"mixer {kind} + depth": {"mixers": kind, "ffn": ffn(per_token=True), "depth": ALL_DEPTH} for kind in MIXERS},
    "mixers + everything": {
        "mixers": ["mamba2", "gated_delta", "attention", "rwkv7", "retnet"],
        "num_layers": 5,
        "heads": SHARED,
        "attention": {"window": [0, 0, 32, 0, 0]},
        "ffn": ffn(per_token=True),
        "depth": {**BOTH, "exit_criterion": "margin"},
    },
}


@click.command()
@click.option("--tokens", default=10_000, show_default=True, help="Tokens to compare.")
@click.option("--decoded", default=2_000, show_default=True, help="Number of them to compare one at a time as well.")
@click.option("--only", default="", help="Compare only models whose name contains this.")
@click.option("--target", default="portable", show_default=True, type=click.Choice(["portable", "cpu"]), help="Graph.")
def main(tokens: int, decoded: int, only: str, target: str) -> None:
    """Print one line for each mechanism and combination; fail if torch and graph differ anywhere."""
    torch.set_num_threads(1)
    kinds = {**ALONE, **TOGETHER, **RECURRENT}
    runs = [(name, kind, False) for name, kind in kinds.items()]
    if target == "portable":  # where heads that were not chosen may be computed
        runs += [(f"{name}, sliced", kind, True) for name, kind in kinds.items() if "heads" in kind]
    columns = {"tokens": 7, "near ties": 10, "flipped": 8, "wrong": 6, "against torch": 14, "one at a time": 14}
    click.echo(" " * 34 + "".join(f" {column:>{width}}" for column, width in columns.items()) + "  used")
    begin, failed = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, kind, sliced) in enumerate(runs):
            if only not in name:
                continue
            SLICED_FROM["fp32"] = 0 if sliced else 2**62
            source = read(_write(Path(folder) / f"run-{number}", kind, seed=number))
            prompts, singles, used = _compare(source, Path(folder) / f"model-{number}", target, tokens, decoded)
            tolerance = STATES_TOLERANCE if name in RECURRENT else TOLERANCE["fp32"]
            passed = prompts.passes(tolerance) and singles.passes(TOLERANCE["fp32"])
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
    """Write a run without training: config, tokenizer, held-out text and one checkpoint."""
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
    """Redraw every weight, so that none is 0 or 1, and set the windows that a controller would set.

    Contextual positions are drawn at a third of the scale of the others. At the full scale neighbours differ by 1.7 in
    every score; then torch in float32 already differs by 1e-4 from torch in float64, and the error of the graph cannot
    be told apart.
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


def _compare(
    source: Source, folder: Path, target: str, tokens: int, decoded: int
) -> tuple[Comparison, Comparison, str]:
    folder.mkdir()
    manifest = write_files(source, folder, targets=[] if target == "portable" else [target])
    session = Session(folder, manifest, device="cpu", target=target, threads=1, verify=False)
    ids = source.heldout_ids(tokens)
    texts = list(ids[:, : ids.shape[1] // PROMPT * PROMPT].view(-1, 1, PROMPT))
    limits = _busy(source, torch.cat(texts[:8]))
    prompts, singles = Comparison(outliers=0 if source.config.has_states else None), Comparison()
    passes: list[Pass] = []
    for number, text in enumerate(texts):
        expected, prompt = torch_pass(source.model, text, limits), prompt_pass(session, text, limits)
        compare(prompts, expected, prompt)
        passes.append(expected)
        if number * PROMPT < decoded:
            compare(singles, replace(prompt, margins=expected.margins), token_pass(session, text, limits))
    return prompts, singles, _used(source, passes)


@torch.no_grad()
def _busy(source: Source, texts: Tensor) -> ThresholdTensors:
    """Return the controllers' thresholds, and at each exit the confidence that a share LEAVE of the tokens is below."""
    limits = source.thresholds()
    leave = limits.exit_threshold.clone()
    for layer, confidence in source.model(texts, limits).exit_confidence.items():
        leave[layer] = confidence.flatten().quantile(LEAVE)
    return limits._replace(exit_threshold=leave)


def _used(source: Source, passes: list[Pass]) -> str:
    """Format the mean use per token, over the layers it ran, of what this model chooses."""
    config = source.config
    runs = np.concatenate([one.layers_run for one in passes], 1)  # (L, N)
    parts = []
    if config.ffn.routing != "dense":
        experts = np.concatenate([one.selected_experts for one in passes], 1)
        parts.append(f"{experts.sum(-1)[runs].mean():.2f} experts")
    if config.heads.routing != "all":
        chosen = np.concatenate([one.selected_heads for one in passes], 1)
        parts.append(f"{chosen.sum(-1)[runs].mean():.2f} heads")
    if config.adapts_depth:
        parts.append(f"{runs.sum(0).mean():.2f} layers")
    if config.has_windows:
        windows = np.concatenate([one.windows for one in passes], 1)
        parts.append(f"window {windows[windows > 0].mean():.0f}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
