"""The dense model that decodes as fast as the adaptive one: several hidden widths are measured, one is chosen.

The values of the weights do not matter for the time, so all are new: in int8, in alternation, on the target `cpu`. The
adaptive one is top-2 of 8: untrained or not, every token does the work that top-p does on average. After the trainings,
all are timed again with their real weights, and the report shows how well the choice was met.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptive_lm.runtime import Dial, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.measuring.timing import time_engines
from adaptive_lm.train.config.run_config import make_config, read_recipe
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.training import begin
from models.random_weights import export
from payoff.entrants import Size, span
from payoff.measurement import means

STEP = 32
"""Hidden widths are multiples of it, as the blocks of int8."""
SHARES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Candidates, as shares of the hidden width of the dense model."""


class Twin(NamedTuple):
    """The chosen hidden width, and the times that it was chosen by."""

    hidden: int
    adaptive: float
    """CPU milliseconds per token of the adaptive model."""
    candidates: dict[str, float]
    """The same of each candidate, by its hidden width."""


def widths(size: Size) -> list[int]:
    """List the hidden widths of the candidates."""
    return sorted({max(STEP, round(share * size.hidden / STEP) * STEP) for share in SHARES})


def find(folder: Path, size: Size, adaptive_recipe: Path, dense: Mapping[int, Path], rounds: int) -> Twin:
    """Measure the dense candidates beside the adaptive model, and choose a hidden width.

    Args:
        folder: Where the models are written; it can be deleted afterwards.
        size: The shape that all share.
        adaptive_recipe: The recipe of top-2 of 8.
        dense: The recipe of each candidate, by its hidden width.
        rounds: Rounds of alternation.
    """
    models = [_untrained(folder, recipe) for recipe in (adaptive_recipe, *dense.values())]
    engines = [load(model, device="cpu", target="cpu", threads=1) for model in models]
    prompt, answer = span(size.context)
    ids = np.random.default_rng(0).integers(size.vocabulary // 2, size=prompt + answer).tolist()
    cases = [(engine, resolve(engine.manifest, Dial())) for engine in engines]
    timed = time_engines(cases, ids[:prompt], ids[prompt:], repeats=rounds, seed=0)
    wanted, *times = (float(np.median(means(one))) for one in timed)
    by_width = dict(zip(dense, times, strict=True))
    return Twin(choose(wanted, by_width, size.hidden), wanted, {str(width): time for width, time in by_width.items()})


def choose(wanted: float, times: Mapping[int, float], hidden: int) -> int:
    """Return the hidden width whose time is `wanted`, by a line through the times of the candidates.

    It is at least the smallest candidate and at most twice the largest; if time does not rise with width, it is
    `hidden`.
    """
    measured = np.array(list(times), float)
    slope, start = np.polyfit(measured, np.array(list(times.values())), 1)
    if slope <= 0:
        return hidden
    width = float(np.clip((wanted - start) / slope, measured.min(), 2 * measured.max()))
    return round(width / STEP) * STEP


def _untrained(folder: Path, recipe: Path) -> Path:
    """Write a model with new weights in int8, once."""
    model = folder / "models" / recipe.stem
    if not (model / "manifest.json").exists():
        run = Run(folder / "runs" / recipe.stem)
        begin(make_config(read_recipe(str(recipe)), [{"trainer": {"steps": 0}}]), run, overwrite=True)
        export(run.path, model, "int8")
    return model
