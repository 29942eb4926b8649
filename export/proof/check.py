"""The check at the end of an export. A model that fails it is not written."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...runtime.execution.session import Session
from ...runtime.format.manifest import KV, Precisions
from ..graph.weights import FP32
from ..source import Source
from .judge import Judge
from .parity import (
    EPSILON,
    HALF_EPSILON,
    HALF_TOLERANCE,
    OUTLIERS,
    STATES_EPSILON,
    STATES_TOLERANCE,
    TOLERANCE,
    Comparison,
    compare,
)
from .passes import Pass, continue_greedily, prompt_pass, token_pass, torch_pass
from .quantisation import measure

DECODED = 96
"""Tokens read one at a time and compared with the same tokens as a prompt."""
GREEDY = 200
"""Tokens of the greedy continuation."""
PROMPT = 16
"""Tokens of the prompt that is continued."""
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
    results = _Results(graph)

    passes: dict[str, list[Pass]] = {}
    for name, thresholds in judge.points.items():
        if not graph.exact and name != "trained":
            continue
        log(f"comparing {graph.label} with torch: {SETTINGS[name]}")
        passes[name] = [judge.keep(prompt_pass(session, window, thresholds)) for window in judge.windows]
        if not graph.exact:
            continue
        expected = judge.passes(graph.target, graph.precisions, name)
        comparison = graph.compare(zip(expected, passes[name], strict=True))
        results.add_comparison(f"torch_thresholds_{name}", f" vs torch, {SETTINGS[name]}", comparison)
        if portable is not None:
            known = [replace(one, margins=own.margins) for one, own in zip(portable[name], expected, strict=True)]
            comparison = graph.compare(zip(known, passes[name], strict=True), capped=False)
            results.add_comparison(f"portable_thresholds_{name}", f" vs portable, {SETTINGS[name]}", comparison)
    if graph.rounds:
        cost = measure(judge, graph.target, graph.precisions, graph.kv, passes["trained"])
        results.add("quantisation", cost.report(), graph.prefix + cost.line())

    log(f"comparing a prompt with the same tokens one at a time in the {graph.label}")
    short = judge.windows[0][:, :DECODED]
    decoded = []
    for name, thresholds in judge.points.items():
        prompt = prompt_pass(session, short, thresholds)
        if not graph.precisions.quantised and not graph.repeats:  # torch knows the margins of these numbers
            margins = judge.passes(graph.target, graph.precisions, name)[0].margins
            prompt = replace(prompt, margins=margins[: short.shape[1]])
        decoded.append((judge.keep(prompt), judge.keep(token_pass(session, short, thresholds))))
    comparison = graph.compare(decoded, capped=False)
    tolerance = 0.0 if graph.repeats else graph.tolerance
    results.add_comparison("prompt_against_single_tokens", ", one token at a time vs one prompt", comparison, tolerance)

    log(f"continuing a prompt by {GREEDY} tokens")
    results.add("continuation", *_continuation(judge, session, graph))
    return Check(results.report | {"passed": not results.failures}, results.lines, results.failures, passes)


class _Graph:
    """The graph in a session, and how it is compared."""

    def __init__(self, session: Session) -> None:
        target = session.manifest.targets.get(session.target)
        self.target = session.target
        self.label = "graph" if self.target == "portable" else f"{self.target} graph"
        self.prefix = "" if self.target == "portable" else f"{self.label}, "
        """The beginning of lines that name the graph only where it is not the portable one."""
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

    def compare(self, pairs: Iterable[tuple[Pass, Pass]], *, capped: bool = True) -> Comparison:
        """Compare pairs of an expected and an actual pass."""
        comparison = Comparison(capped=capped, epsilon=self.epsilon, outliers=0 if self.has_states else None)
        for expected, actual in pairs:
            compare(comparison, expected, actual)
        return comparison


class _Results:
    """The comparisons of one graph so far."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self.report: dict[str, Any] = {"precision": graph.precisions.narrowest}
        self.lines: list[str] = []
        self.failures: list[str] = []

    def add(self, key: str, report: dict[str, Any], line: str, details: Sequence[str] = ()) -> None:
        """Add a comparison: its report, which says whether it passed, its line, and details for a failure."""
        self.report[key] = report
        self.lines.append(line)
        if not report["passed"]:
            self.failures.append("; ".join([line, *details]))

    def add_comparison(self, key: str, name: str, comparison: Comparison, tolerance: float | None = None) -> None:
        """Add a comparison of passes; `name` follows that of the graph, None takes the tolerance of the graph."""
        tolerance = self.graph.tolerance if tolerance is None else tolerance
        line = comparison.line(self.graph.label + name, tolerance)
        self.add(key, comparison.report(tolerance), line, comparison.failures[:1])


def _continuation(judge: Judge, session: Session, graph: _Graph) -> tuple[dict[str, Any], str]:
    """Continue a prompt greedily with the graph, and check that a judge chooses the same tokens.

    The judge reads the whole text at once. Since both are causal, that equals generating with the judge token by token.
    The judge is torch with the graph's weights where the graph is exact. For int8 and int4, whose activations are
    rounded too, it is the graph itself with the whole text as one prompt. Where two tokens are equally good within the
    tolerance, either may be chosen; such ties are counted.

    Returns:
        The figures for the manifest, and the line for the user.
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
    report = {"tokens": number, "equal": same, "near_ties": ties, "judge": name, "passed": same + ties == number}
    tied = f", {ties} within {tolerance:.0e} of the best" if ties else ""
    return report, f"{graph.prefix}greedy continuation vs {name}: {same} of {number} tokens equal{tied}"
