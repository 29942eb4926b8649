"""The check at the end of an export. A model that fails it is not written."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...runtime.execution.session import Session
from ...runtime.format.manifest import KV, Precision, Precisions
from ..graph.builder import Array
from ..graph.weights import FP32
from ..source import Source
from .judge import Judge
from .parity import (
    EPSILON,
    HALF_EPSILON,
    HALF_TOLERANCE,
    HIDDEN_FACTOR,
    OUTLIERS,
    STATES_EPSILON,
    STATES_TOLERANCE,
    TOLERANCE,
    Comparison,
    Pass,
    compare,
    continue_greedily,
    prompt_pass,
    token_pass,
    torch_pass,
)

DECODED = 96
"""Tokens read one at a time and compared with the same tokens as a prompt."""
GREEDY = 200
"""Tokens of the greedy continuation."""
PROMPT = 16
"""Tokens of the prompt that is continued."""
MAX_WORSE: dict[Precision, float] = {"fp32": 0.005, "bf16": 0.005, "fp16": 0.005, "int8": 0.005, "int4": 0.03}
"""Share by which bits per byte may exceed those of the torch model, by the narrowest precision of the weights; that of
fp32 is for weights in fp32 with a narrower cache."""
MAX_ROUNDED_WORSE = 0.005
"""The same share, compared with torch with the rounded weights: what rounding of activations and cache may cost."""
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.98, "bf16": 0.98, "fp16": 0.98, "int8": 0.98, "int4": 0.9}
"""Least cosine between the embedding of a window and that of the torch model, by the narrowest precision."""
ROWS = 32
"""Tokens whose logits are widened to float64 at a time."""
PER_ROW = 0.005
"""What a portable graph in int8 may lose besides: its activations have one scale per row (decision 0001), which costs
more where some are much larger than the others. SmolLM2-135M-Instruct loses 0.7 % with it, and 0.1 % with the scales
per block of the target cpu."""
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
    passes: dict[str, list[Pass]]
    """What the graph gave for each window of the judge, by the thresholds."""


def only_ties(reports: Iterable[dict[str, Any]]) -> bool:
    """Return whether every failed comparison failed only by too many near ties, which are no fault of the graph."""
    parts = [part for report in reports for part in report.values()]
    failed = [part for part in parts if isinstance(part, dict) and not part.get("passed", True)]
    return bool(failed) and all(
        part.get("wrong_decisions") == 0
        and part["largest_logit_difference"] <= part["tolerance"]
        and part.get("outliers", 0) <= OUTLIERS * part["tokens"]
        and part.get("largest_hidden_difference", 0.0) <= part.get("hidden_tolerance", 0.0)
        for part in failed
    )


def check(
    source: Source,
    session: Session,
    log: Callable[[str], None],
    judge: Judge | None = None,
    portable: dict[str, list[Pass]] | None = None,
) -> Check:
    """Compare the graph in `session` with the torch model on held-out text.

    Args:
        source: The checkpoint.
        session: The graph of one target.
        log: Called with what runs now.
        judge: Keeps the passes of torch for another graph; None computes them.
        portable: The passes of the portable graph, to compare those of another target with.
    """
    judge = judge or Judge(source)
    graph = _Graph(session)
    report: dict[str, Any] = {"precision": graph.precisions.narrowest}
    lines: list[str] = []
    failures: list[str] = []

    passes: dict[str, list[Pass]] = {}
    for name, thresholds in judge.points.items():
        if not graph.exact and name != "trained":
            continue
        log(f"comparing {graph.label} with torch: {SETTINGS[name]}")
        passes[name] = [judge.keep(prompt_pass(session, window, thresholds)) for window in judge.windows]
        if not graph.exact:
            continue
        expected = judge.passes(graph.target, graph.precisions, name)
        comparison = _compare(zip(expected, passes[name], strict=True), graph)
        report[f"torch_thresholds_{name}"] = comparison.report(graph.tolerance)
        _note(f"{graph.label} vs torch, {SETTINGS[name]}", comparison, graph.tolerance, lines, failures)
        if portable is not None:
            known = [replace(one, margins=own.margins) for one, own in zip(portable[name], expected, strict=True)]
            comparison = _compare(zip(known, passes[name], strict=True), graph, capped=False)
            report[f"portable_thresholds_{name}"] = comparison.report(graph.tolerance)
            _note(f"{graph.label} vs portable, {SETTINGS[name]}", comparison, graph.tolerance, lines, failures)
    if graph.rounds:
        _quantisation(judge, graph, passes["trained"], report, lines, failures)

    log(f"comparing a prompt with the same tokens one at a time in the {graph.label}")
    short = judge.windows[0][:, :DECODED]
    decoded = []
    for name, thresholds in judge.points.items():
        prompt = prompt_pass(session, short, thresholds)
        if not graph.precisions.quantised and not graph.repeats:  # torch knows the margins of these numbers
            margins = judge.passes(graph.target, graph.precisions, name)[0].margins
            prompt = replace(prompt, margins=margins[: short.shape[1]])
        decoded.append((judge.keep(prompt), judge.keep(token_pass(session, short, thresholds))))
    comparison = _compare(decoded, graph, capped=False)
    tolerance = 0.0 if graph.repeats else graph.tolerance
    report["prompt_against_single_tokens"] = comparison.report(tolerance)
    _note(f"{graph.label}, one token at a time vs one prompt", comparison, tolerance, lines, failures)

    log(f"continuing a prompt by {GREEDY} tokens")
    _continuation(judge, session, graph, report, lines, failures)
    return Check(report | {"passed": not failures}, lines, failures, passes)


class _Graph:
    """What is known of the graph in a session."""

    def __init__(self, session: Session) -> None:
        target = session.manifest.targets.get(session.target)
        self.target = session.target
        self.label = "graph" if self.target == "portable" else f"{self.target} graph"
        self.precisions: Precisions = (target.precisions if target else session.manifest.model.precisions) or FP32
        self.kv: KV = target.kv if target else "fp32"
        self.rounds = self.precisions != FP32 or self.kv != "fp32"
        in_half = self.target == "cuda" and "fp16" in self.precisions.model_dump().values()
        self.exact = not self.precisions.quantised and self.kv == "fp32" and not in_half
        """Whether it computes what torch does with the same weights: activations and cache are not rounded."""
        self.repeats = self.target == "cpu"
        """Whether a token has the same bits alone and in a prompt."""
        self.has_states = session.manifest.model.has_states and not in_half and not self.precisions.quantised
        """Whether recurrent mixers make a few tokens differ more than others; in int8 all have the same bits."""
        self.tolerance = TOLERANCE[self.precisions.narrowest]
        self.epsilon = EPSILON
        if in_half:
            self.tolerance, self.epsilon = HALF_TOLERANCE, HALF_EPSILON
        elif self.has_states:
            self.tolerance, self.epsilon = STATES_TOLERANCE, STATES_EPSILON


def _compare(pairs: Iterable[tuple[Pass, Pass]], graph: _Graph, *, capped: bool = True) -> Comparison:
    comparison = Comparison(capped=capped, epsilon=graph.epsilon, outliers=0 if graph.has_states else None)
    for expected, actual in pairs:
        compare(comparison, expected, actual)
    return comparison


def _note(name: str, comparison: Comparison, tolerance: float, lines: list[str], failures: list[str]) -> None:
    wrong, hidden = comparison.wrong_decisions, comparison.largest_hidden_difference
    decisions = "all decisions equal" if not wrong else f"decisions DIFFER for {wrong} tokens"
    line = (
        f"{name}: {comparison.tokens} tokens, {decisions} ({comparison.near_ties} near ties, {comparison.flipped} "
        f"flipped), largest logit difference {comparison.largest_difference:.1e} (tolerance {tolerance:.0e})"
        + ("" if comparison.outliers is None else f", {comparison.outliers} outliers")
        + ("" if hidden is None else f", of hidden states {hidden:.1e} (tolerance {HIDDEN_FACTOR * tolerance:.0e})")
    )
    lines.append(line)
    if not comparison.passes(tolerance):
        failures.append("; ".join([line, *comparison.failures[:1]]))


def _continuation(
    judge: Judge, session: Session, graph: _Graph, report: dict[str, Any], lines: list[str], failures: list[str]
) -> None:
    """Continue a prompt greedily with the graph, and check that a judge chooses the same tokens.

    The judge reads the whole text at once. Since both are causal, that equals generating with the judge token by token.
    The judge is torch with the graph's weights where the graph is exact. For int8 and int4, whose activations are
    rounded too, it is the graph itself with the whole text as one prompt. Where two tokens are equally good within the
    tolerance, either may be chosen; such ties are counted.
    """
    thresholds, window = judge.points["trained"], judge.windows[0]
    context = judge.source.config.context_length
    prompt = window[0, : min(PROMPT, context // 2)].tolist()
    number = min(GREEDY, context - len(prompt))
    ids = continue_greedily(session, prompt, number, thresholds)
    text = torch.tensor([ids])
    if graph.exact:
        expected = torch_pass(judge.model(graph.target, graph.precisions), text, thresholds)
    else:
        expected = prompt_pass(session, text, thresholds)
    logits = expected.logits[len(prompt) - 1 : -1]  # (number, V)
    behind = logits.max(-1) - logits[np.arange(number), ids[len(prompt) :]]
    tolerance = 0.0 if graph.repeats and not graph.exact else graph.tolerance
    same, ties = int((behind == 0).sum()), int(((behind > 0) & (behind <= tolerance)).sum())
    name = "torch" if graph.exact else "one prompt"
    passed = same + ties == number
    report["continuation"] = {"tokens": number, "equal": same, "near_ties": ties, "judge": name, "passed": passed}
    tied = f", {ties} within {tolerance:.0e} of the best" if ties else ""
    who = "" if graph.target == "portable" else f"{graph.label}, "
    lines.append(f"{who}greedy continuation vs {name}: {same} of {number} tokens equal{tied}")
    if not passed:
        failures.append(lines[-1])


def _quantisation(
    judge: Judge,
    graph: _Graph,
    actual: list[Pass],
    report: dict[str, Any],
    lines: list[str],
    failures: list[str],
) -> None:
    """Measure what rounding costs: bits per byte, and the share of routing decisions that differ.

    Compared with torch in fp32, and with torch with the rounded weights, which leaves the rounding of activations.
    """
    exact = judge.passes(graph.target, FP32, "trained")
    rounded = judge.passes(graph.target, graph.precisions, "trained")
    own, torch_bits, rounded_bits = (_bits_per_byte(judge, passes) for passes in (actual, exact, rounded))
    worse, rounded_worse = own / torch_bits - 1, own / rounded_bits - 1
    per_row = graph.target == "portable" and graph.precisions.narrowest in ("int8", "int4")
    limit = MAX_WORSE[graph.precisions.narrowest] + PER_ROW * per_row
    flips = _flips(exact, actual)
    cosine = _least_cosine(exact, actual)
    least = LEAST_COSINE[graph.precisions.narrowest]
    passed = worse <= limit and rounded_worse <= MAX_ROUNDED_WORSE + PER_ROW * per_row
    passed = passed and (cosine is None or cosine >= least)
    report["quantisation"] = {
        "bits_per_byte": own,
        "bits_per_byte_torch": torch_bits,
        "bits_per_byte_rounded": rounded_bits,
        "worse_share": worse,
        "flipped_decisions_share": flips,
        "flipped_against_rounded_share": _flips(rounded, actual),
        **({} if cosine is None else {"least_embedding_cosine": cosine}),
        "passed": passed,
    }
    who = "" if graph.target == "portable" else f"{graph.label}, "
    cache = "" if graph.kv == "fp32" else f" with a cache in {graph.kv}"
    lines.append(
        f"{who}{graph.precisions.narrowest}{cache}: {own:.4f} bits per byte, torch {torch_bits:.4f} "
        f"({worse:+.2%}, limit {limit:+.1%}), with the rounded weights {rounded_bits:.4f}; "
        f"{flips:.2%} of the routing decisions differ"
        + ("" if cosine is None else f"; least cosine of an embedding {cosine:.4f}, limit {least:g}")
    )
    if not passed:
        failures.append(lines[-1])


def _least_cosine(expected: list[Pass], actual: list[Pass]) -> float | None:
    """Return the least cosine between the embeddings of a window; None where the graph gives no hidden states."""
    if not actual[0].hidden.shape[1]:
        return None
    cosines = []
    for one, other in zip(expected, actual, strict=True):
        first, second = (states.hidden[:].mean(0, dtype=np.float64) for states in (one, other))
        cosines.append(float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))))
    return min(cosines)


def _flips(expected: list[Pass], actual: list[Pass]) -> float:
    """Return the share of routing decisions that differ."""
    routed = ("selected_experts", "selected_heads", "layers_run")
    flips = decisions = 0
    for one, other in zip(expected, actual, strict=True):
        for name in routed:
            flips += int((getattr(one, name) != getattr(other, name)).sum())
            decisions += getattr(one, name).size
    return flips / decisions


def _bits_per_byte(judge: Judge, passes: list[Pass]) -> float:
    return sum(_bits(one, window) for one, window in zip(passes, judge.windows, strict=True)) / judge.num_bytes()


def _bits(one: Pass, window: torch.Tensor) -> float:
    """Return the bits that code the window (1, T) after its first token."""
    targets = window[0, 1:].numpy()
    coded = []
    for begin in range(0, len(targets), ROWS):
        following = targets[begin : begin + ROWS]
        logits: Array = one.logits[begin : begin + len(following)].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        coded.append(log_probs[np.arange(len(following)), following])
    return float(-np.concatenate(coded).sum() / math.log(2))
