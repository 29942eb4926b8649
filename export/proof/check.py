"""The check at the end of an export. A model that fails it is not written."""

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
"""Tokens of one prompt that is compared with torch."""
TOKENS = 1024
"""Tokens compared with torch in all, at each set of thresholds."""
DECODED = 96
"""Tokens read one at a time and compared with the same tokens as a prompt."""
GREEDY = 200
"""Tokens of the greedy continuation."""
PROMPT = 16
"""Tokens of the prompt that is continued."""
MAX_WORSE = 0.005
"""Share by which the bits per byte of an int8 model may exceed those of the torch model."""
SETTINGS = {"trained": "trained thresholds", "everything": "everything on", "little": "low compute"}
"""The thresholds to compare at, as the user reads them."""


@dataclass(frozen=True)
class Check:
    """The outcome of the check."""

    report: dict[str, Any]
    """Goes into the manifest as `parity`."""
    lines: list[str]
    """One line per comparison, for the user."""
    failures: list[str]
    """The lines of the comparisons that failed, with details; empty where all is well."""


def only_ties(report: dict[str, Any]) -> bool:
    """Return whether every failed comparison failed only by too many near ties, which are no fault of the graph."""
    failed = [part for part in report.values() if isinstance(part, dict) and not part.get("passed", True)]
    return bool(failed) and all(
        part.get("wrong_decisions") == 0 and part["largest_logit_difference"] <= part["tolerance"] for part in failed
    )


def points(source: Source) -> dict[str, ThresholdTensors]:
    """Return the thresholds to compare at, by the names in SETTINGS."""
    trained = source.thresholds()
    ones, zeros = torch.ones_like(trained.router_top_p), torch.zeros_like(trained.router_top_p)
    thresholds = {"trained": trained, "everything": ThresholdTensors(ones, zeros, ones, ones)}
    config = source.config
    if config.adapts_depth or config.ffn.routing == "top_p" or config.heads.routing in ("top_p", "adaptive"):
        depth = (trained.depth_threshold + 0.1).clamp(max=1) if config.depth.layers_share < 1 else zeros
        thresholds["little"] = ThresholdTensors(trained.router_top_p / 2, depth, 0.5 * ones, trained.head_top_p / 2)
    return thresholds


def check(source: Source, session: Session, log: Callable[[str], None]) -> Check:
    """Compare the graph in `session` with the torch model on held-out text; `log` is called with what runs now."""
    precision = session.manifest.model.precision
    tolerance = TOLERANCE[precision]
    ids = source.heldout_ids(TOKENS)
    length = min(WINDOW, source.config.context_length, ids.shape[1])
    windows = list(ids[:, : ids.shape[1] // length * length].view(-1, 1, length))
    report: dict[str, Any] = {"precision": precision}
    lines: list[str] = []
    failures: list[str] = []

    passes: dict[str, list[tuple[Pass, Pass]]] = {}
    for name, thresholds in points(source).items():
        log(f"comparing with torch: {SETTINGS[name]}")
        passes[name] = [
            (torch_pass(source.model, window, thresholds), prompt_pass(session, window, thresholds))
            for window in windows
        ]

    if precision == "fp32":
        for name, pairs in passes.items():
            comparison = _compare(pairs)
            report[f"torch_thresholds_{name}"] = comparison.report(tolerance)
            _note(f"graph vs torch, {SETTINGS[name]}", comparison, tolerance, lines, failures)
    else:
        _quantisation(passes["trained"], windows, source, report, lines, failures)

    log("comparing a prompt with the same tokens one at a time")
    short = windows[0][:, :DECODED]
    decoded = []
    for name, thresholds in points(source).items():
        prompt = prompt_pass(session, short, thresholds)
        if precision == "fp32":  # torch knows the margins of these numbers
            prompt = replace(prompt, margins=passes[name][0][0].margins[: short.shape[1]])
        decoded.append((prompt, token_pass(session, short, thresholds)))
    comparison = _compare(decoded, capped=False)
    report["prompt_against_single_tokens"] = comparison.report(tolerance)
    _note("one token at a time vs one prompt", comparison, tolerance, lines, failures)

    log(f"continuing a prompt by {GREEDY} tokens")
    _continuation(source, session, windows[0], tolerance, report, lines, failures)
    return Check(report | {"passed": not failures}, lines, failures)


def _compare(pairs: list[tuple[Pass, Pass]], *, capped: bool = True) -> Comparison:
    comparison = Comparison(capped=capped)
    for expected, actual in pairs:
        compare(comparison, expected, actual)
    return comparison


def _note(name: str, comparison: Comparison, tolerance: float, lines: list[str], failures: list[str]) -> None:
    wrong = comparison.wrong_decisions
    decisions = "all decisions equal" if not wrong else f"decisions DIFFER for {wrong} tokens"
    line = (
        f"{name}: {comparison.tokens} tokens, {decisions} ({comparison.near_ties} near ties, {comparison.flipped} "
        f"flipped), largest logit difference {comparison.largest_difference:.1e} (tolerance {tolerance:.0e})"
    )
    lines.append(line)
    if not comparison.passes(tolerance):
        failures.append("; ".join([line, *comparison.failures[:1]]))


def _continuation(
    source: Source,
    session: Session,
    window: torch.Tensor,
    tolerance: float,
    report: dict[str, Any],
    lines: list[str],
    failures: list[str],
) -> None:
    """Continue a prompt greedily with the graph, and check that a judge chooses the same tokens.

    The judge reads the whole text at once. Since both are causal, that equals generating with the judge token by token.
    The judge is torch for fp32. For int8, which rounds differently from torch, it is the graph itself with the whole
    text as one prompt. Where two tokens are equally good within the tolerance, either may be chosen; such ties are
    counted.
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
    lines.append(f"greedy continuation vs {name}: {same} of {number} tokens equal{tied}")
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
    """Measure what int8 costs: bits per byte compared with torch, and the share of routing decisions that differ."""
    bits = [sum(_bits(side, w) for side, w in zip(s, windows, strict=True)) for s in zip(*pairs, strict=True)]
    num_bytes = sum(len(source.tokenizer.decode(w[0, 1:].tolist()).encode()) for w in windows)
    torch_bits, int8_bits = (total / num_bytes for total in bits)
    routed = ("selected_experts", "selected_heads", "layers_run")
    decisions = sum(getattr(expected, name).size for expected, _ in pairs for name in routed)
    flips = sum(
        int((getattr(expected, name) != getattr(actual, name)).sum()) for expected, actual in pairs for name in routed
    )
    worse = int8_bits / torch_bits - 1
    report["quantisation"] = {
        "bits_per_byte": int8_bits,
        "bits_per_byte_torch": torch_bits,
        "worse_share": worse,
        "flipped_decisions_share": flips / decisions,
        "passed": worse <= MAX_WORSE,
    }
    lines.append(
        f"int8: {int8_bits:.4f} bits per byte, torch {torch_bits:.4f} ({worse:+.2%}, limit {MAX_WORSE:+.1%}); "
        f"{flips / decisions:.2%} of the routing decisions differ"
    )
    if not worse <= MAX_WORSE:
        failures.append(lines[-1])


def _bits(one: Pass, window: torch.Tensor) -> float:
    """Return the bits that code the window (1, T) after its first token."""
    logits: Array = one.logits[:-1].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(-log_probs[np.arange(len(log_probs)), window[0, 1:].numpy()].sum() / math.log(2))
