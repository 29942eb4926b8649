"""The check at the end of an export: a model that fails it is not written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...runtime.execution.session import Session
from ...train.model import ThresholdTensors
from ..graph.builder import Array
from ..source import Source
from .parity import (
    TOLERANCE,
    Comparison,
    Pass,
    compare,
    continue_greedily,
    prompt_pass,
    token_pass,
    torch_pass,
)

WINDOW = 256
TOKENS = 1024
DECODED = 96
GREEDY = 200
PROMPT = 16
MAX_WORSE = 0.005
"""Share by which the bits per byte of an int8 model may exceed those of the torch model."""


@dataclass(frozen=True)
class Check:
    """The outcome: `report` goes into the manifest, `lines` to people, `failures` is empty where all is well."""

    report: dict[str, Any]
    lines: list[str]
    failures: list[str]


def only_ties(report: dict[str, Any]) -> bool:
    """Whether all that fails in a report are comparisons with too many near ties, which the model brings with it."""
    failed = [part for part in report.values() if isinstance(part, dict) and not part.get("passed", True)]
    return bool(failed) and all(
        part.get("wrong_decisions") == 0 and part["largest_logit_difference"] <= part["tolerance"] for part in failed
    )


def points(source: Source) -> dict[str, ThresholdTensors]:
    """Thresholds to compare at: the trained ones, everything on, and little."""
    trained = source.thresholds()
    ones, zeros = torch.ones_like(trained.router_top_p), torch.zeros_like(trained.router_top_p)
    found = {"trained": trained, "everything": ThresholdTensors(ones, zeros, ones, ones)}
    config = source.config
    if config.adapts_depth or config.ffn.routing == "top_p" or config.heads.routing in ("top_p", "adaptive"):
        depth = (trained.depth_threshold + 0.1).clamp(max=1) if config.depth.layers_share < 1 else zeros
        found["little"] = ThresholdTensors(trained.router_top_p / 2, depth, 0.5 * ones, trained.head_top_p / 2)
    return found


def check(source: Source, session: Session, progress: Callable[[str], None]) -> Check:
    """Compares the graph in `session` with the torch model on held-out text."""
    precision = session.manifest.model.precision
    tolerance = TOLERANCE[precision]
    ids = source.heldout_ids(TOKENS)
    length = min(WINDOW, source.config.context_length, ids.shape[1])
    windows = list(ids[:, : ids.shape[1] // length * length].view(-1, 1, length))
    report: dict[str, Any] = {"precision": precision}
    lines: list[str] = []
    failures: list[str] = []

    judged: dict[str, list[tuple[Pass, Pass]]] = {}
    for name, thresholds in points(source).items():
        progress(f"comparing with torch, thresholds: {name}")
        judged[name] = [
            (torch_pass(source.model, window, thresholds), prompt_pass(session, window, thresholds))
            for window in windows
        ]

    if precision == "fp32":
        for name, pairs in judged.items():
            _note(f"torch, thresholds {name}", _compare(pairs), tolerance, report, lines, failures)
    else:
        _quantisation(judged["trained"], windows, source, report, lines, failures)

    progress("comparing a prompt with its tokens one at a time")
    short = windows[0][:, :DECODED]
    decoded = []
    for name, thresholds in points(source).items():
        prompt = prompt_pass(session, short, thresholds)
        if precision == "fp32":  # torch knows the margins of these very numbers
            prompt = replace(prompt, margins=judged[name][0][0].margins[: short.shape[1]])
        decoded.append((prompt, token_pass(session, short, thresholds)))
    _note("prompt against single tokens", _compare(decoded, capped=False), tolerance, report, lines, failures)

    progress(f"continuing a prompt by {GREEDY} tokens")
    _continuation(source, session, windows[0], tolerance, report, lines, failures)
    return Check(report | {"passed": not failures}, lines, failures)


def _compare(pairs: list[tuple[Pass, Pass]], *, capped: bool = True) -> Comparison:
    result = Comparison(capped=capped)
    for judge, found in pairs:
        compare(result, judge, found)
    return result


def _note(
    name: str, found: Comparison, tolerance: float, report: dict[str, Any], lines: list[str], failures: list[str]
) -> None:
    report[name.replace(",", "").replace(" ", "_")] = found.report(tolerance)
    decisions = "equal" if not found.wrong_decisions else f"DIFFER for {found.wrong_decisions} tokens"
    line = (
        f"{name}: {found.tokens} tokens, decisions {decisions} ({found.near_ties} near ties, {found.flipped} flipped), "
        f"largest logit difference {found.largest_difference:.1e} (tolerance {tolerance:.0e})"
    )
    lines.append(line)
    if not found.passes(tolerance):
        failures.append("; ".join([line, *found.failures[:1]]))


def _continuation(
    source: Source,
    session: Session,
    window: torch.Tensor,
    tolerance: float,
    report: dict[str, Any],
    lines: list[str],
    failures: list[str],
) -> None:
    """The graph continues greedily; its judge reads the whole text at once and must choose every token likewise.

    Since both are causal, that is the same as generating with the judge token by token. The judge is torch for fp32;
    for int8, whose numbers are its own, it is the graph itself on the whole text as one prompt. Where two tokens are as
    good as each other within the tolerance, either may be chosen; such ties are counted.
    """
    thresholds, against_torch = source.thresholds(), session.manifest.model.precision == "fp32"
    prompt = window[0, : min(PROMPT, source.config.context_length // 2)].tolist()
    number = min(GREEDY, source.config.context_length - len(prompt))
    ids = continue_greedily(session, prompt, number, thresholds)
    text = torch.tensor([ids])
    judge = torch_pass(source.model, text, thresholds) if against_torch else prompt_pass(session, text, thresholds)
    logits = judge.logits[len(prompt) - 1 : -1]  # (number, V)
    behind = logits.max(-1) - logits[np.arange(number), ids[len(prompt) :]]
    same, ties = int((behind == 0).sum()), int(((behind > 0) & (behind <= tolerance)).sum())
    name = "torch" if against_torch else "one prompt"
    passed = same + ties == number
    report["continuation"] = {"tokens": number, "equal": same, "near_ties": ties, "judge": name, "passed": passed}
    tied = f", {ties} within {tolerance:.0e} of the best" if ties else ""
    lines.append(f"greedy continuation against {name}: {same} of {number} tokens equal{tied}")
    if not passed:
        failures.append(lines[-1])


def _quantisation(
    pairs: list[tuple[Pass, Pass]],
    windows: Sequence[torch.Tensor],
    source: Source,
    report: dict[str, Any],
    lines: list[str],
    failures: list[str],
) -> None:
    """What int8 costs: bits per byte against torch, and the share of routing decisions that fell otherwise."""
    bits = [sum(_bits(side, w) for side, w in zip(s, windows, strict=True)) for s in zip(*pairs, strict=True)]
    num_bytes = sum(len(source.tokenizer.decode(w[0, 1:].tolist()).encode()) for w in windows)
    torch_bits, int8_bits = (total / num_bytes for total in bits)
    routed = ("selected_experts", "selected_heads", "layers_run")
    decisions = sum(getattr(judge, name).size for judge, _ in pairs for name in routed)
    flips = sum(int((getattr(judge, name) != getattr(found, name)).sum()) for judge, found in pairs for name in routed)
    worse = int8_bits / torch_bits - 1
    report["quantisation"] = {
        "bits_per_byte": int8_bits,
        "bits_per_byte_torch": torch_bits,
        "worse_share": worse,
        "flipped_decisions_share": flips / decisions,
        "passed": worse <= MAX_WORSE,
    }
    lines.append(
        f"int8: {int8_bits:.4f} bits per byte against {torch_bits:.4f} in torch ({worse:+.2%}, at most "
        f"{MAX_WORSE:+.1%}); {flips / decisions:.2%} of the routing decisions flipped"
    )
    if not worse <= MAX_WORSE:
        failures.append(lines[-1])


def _bits(found: Pass, window: torch.Tensor) -> float:
    """Bits to code the window after its first token."""
    logits: Array = found.logits[:-1].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(-log_probs[np.arange(len(log_probs)), window[0, 1:].numpy()].sum() / math.log(2))
