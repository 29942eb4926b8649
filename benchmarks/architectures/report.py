"""Table and plot of the comparison of small models."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from page.table import table


@dataclass
class Line:
    """The measurements of one model and seed; times and memory only of the first seed."""

    kind: str
    seed: int
    steps: int
    bits_per_byte: float
    megaflops: float
    ours: bool
    milliseconds: dict[int, list[float]] = field(default_factory=dict)
    """Context -> medians of the rounds."""
    memory: dict[int, int] = field(default_factory=dict)
    """Context -> bytes of caches and states."""


def markdown(lines: Sequence[Line], contexts: Sequence[int], heading: str, smollm: float | None) -> str:
    """Return the table: means over the seeds with half their range, medians over the rounds with theirs."""
    columns = [f"ms at {context:,}" for context in contexts] + [
        f"KiB at {min(contexts):,}",
        f"KiB at {max(contexts):,}",
    ]
    head = ["model", "steps", "bits per byte", "MFLOPs per token", *columns]
    rows = []
    for kind in dict.fromkeys(line.kind for line in lines):
        own = [line for line in lines if line.kind == kind]
        bits = [line.bits_per_byte for line in own]
        spread = f" ± {(max(bits) - min(bits)) / 2:.3f}" if len(bits) > 1 else ""
        first = own[0]
        times = [_time(first.milliseconds.get(context, [])) for context in contexts]
        memory = [_kib(first.memory.get(context)) for context in (min(contexts), max(contexts))]
        name = f"**{kind}**" if first.ours else kind
        values = [name, f"{np.mean([line.steps for line in own]):.0f}", f"{np.mean(bits):.3f}{spread}"]
        values += [f"{np.mean([line.megaflops for line in own]):.2f}", *times, *memory]
        rows.append(values)
    real = (
        [] if smollm is None else ["", f"The real SmolLM2-135M (int8) on the same bytes: {smollm:.3f} bits per byte."]
    )
    return "\n".join([heading, "", table(head, rows), *real, ""])


def _time(rounds: Sequence[float]) -> str:
    if not rounds:
        return "-"
    return f"{np.median(rounds):.3f} ({min(rounds):.3f} to {max(rounds):.3f})"


def _kib(size: int | None) -> str:
    return "-" if size is None else f"{size / 1024:,.0f}"


def draw(lines: Sequence[Line], contexts: Sequence[int], path: Path, heading: str) -> None:
    """Plot bits per byte over the time of a token, and the time of a token over the context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in dict.fromkeys(line.kind for line in lines):
        own = [line for line in lines if line.kind == kind]
        first, color = own[0], "#b2182b" if own[0].ours else "#2166ac"
        if not first.milliseconds:
            continue
        times = [float(np.median(first.milliseconds[context])) for context in contexts]
        at = (times[0], float(np.mean([line.bits_per_byte for line in own])))
        left.plot(*at, "o", color=color)
        left.annotate(kind, at, textcoords="offset points", xytext=(5, 3), fontsize=7)
        right.plot(contexts, times, marker=".", color=color)
        right.annotate(kind, (contexts[-1], times[-1]), textcoords="offset points", xytext=(4, 0), fontsize=7)
    left.set(xlabel=f"ms per token after {contexts[0]} tokens", ylabel="bits per byte of held-out text", xscale="log")
    right.set(xlabel="tokens before", ylabel="ms per token", xscale="log", yscale="log")
    figure.suptitle(heading, fontsize=8)
    figure.savefig(path, dpi=120)
