"""`adaptive calibrate`: find the thresholds of least loss for each share of the compute, on held-out text.

The text is cut into windows. Even ones are for choosing, odd ones for reporting, so that no figure of the curve is
measured on tokens that its thresholds were chosen on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import MANIFEST
from ..dial import Thresholds
from ..format.files import write_output
from ..format.manifest import Curve, CurvePoint, ExitAgreement, Manifest, Milliseconds
from ..format.schema.curve import ExpertRule
from ..format.schema.dial import ThresholdLists
from ..format.upgrade import upgrade
from ..generation.engine import Engine, load
from ..measuring.machine import describe
from ..measuring.quality.divergence import Divergence, Point, diverge
from ..measuring.quality.given_text import read_text
from ..measuring.quality.perplexity import Score, Window, score, windows
from ..measuring.timing import Timed, time_points
from ..terminal.progress import Progress
from .agreement import CONFIDENCE, Compared, agreement_bounds
from .curve_points import Search, mean_losses
from .mechanisms import adapts, expert_rules

LEAST_TOKENS = 512
"""Least tokens of a text to calibrate on."""


@dataclass(frozen=True, kw_only=True)
class CalibrateParams:
    """Parameters of a calibration.

    Raises:
        WrongUsageError: a number is outside its range.
    """

    data: Path | None = None
    """Text that the model was not trained on; None takes the held-out text of the run."""
    tokens: int = 16384
    """Tokens of the text, at least 512: half to choose on, half to report on."""
    agreement: tuple[float, ...] = (0.9, 0.95, 0.99)
    """Shares of tokens to choose as the whole model does, above 0 and below 1; for models with exits."""
    prompt_tokens: int = 32
    """Timing: length of the prompt, at least 1."""
    new_tokens: int = 64
    """Timing: tokens to decode after the prompt, at least 1."""
    repeats: int = 11
    """Timing: rounds; 0 measures no times."""
    seed: int = 0
    """Seed of the order in which points are timed, at least 0."""

    def __post_init__(self) -> None:
        if self.tokens < LEAST_TOKENS:
            raise WrongUsageError(f"found tokens {self.tokens}, expected at least {LEAST_TOKENS}")
        for name, least in (("prompt_tokens", 1), ("new_tokens", 1), ("repeats", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise WrongUsageError(f"found {name} {getattr(self, name)}, expected at least {least}")
        wrong = next((share for share in self.agreement if not 0 < share < 1), None)
        if wrong is not None:
            raise WrongUsageError(f"found agreement {wrong}, expected above 0 and below 1, such as 0.99")


@dataclass(frozen=True)
class Calibrated:
    """The curve that was written, and the mechanisms that it moves."""

    curve: Curve
    mechanisms: list[str]
    routes_heads: bool
    rules: dict[ExpertRule, list[CurvePoint]]
    """The points of the curve by each rule for experts, on the same text; the times are only in `curve`."""

    @property
    def time_falls(self) -> list[tuple[float, float]]:
        """Neighbouring points, as (lower compute, higher compute), of which the lower one took no less time."""
        timed = [(one.compute, one.milliseconds_per_token.median) for one in self.curve.points
                 if one.milliseconds_per_token]  # fmt: skip
        return [(less, more) for (less, a), (more, b) in pairwise(timed) if a >= b]

    def as_json(self) -> dict[str, Any]:
        """Return the object of `calibrate --json`."""
        rules = {rule: [one.model_dump(mode="json") for one in points] for rule, points in self.rules.items()}
        return {"mechanisms": self.mechanisms, "rules": rules, "curve": self.curve.model_dump(mode="json"),
                "executed_rises": True, "time_rises": not self.time_falls, "time_falls": self.time_falls}  # fmt: skip


def calibrate(
    folder: Path, params: CalibrateParams, progress: Progress, *, device: str = "auto", target: str = "auto",
    threads: int | None = None, verify: bool = True,
) -> Calibrated:  # fmt: skip
    """Measure the curve of the model in `folder` and write it into the manifest, whole or not at all.

    Raises:
        UserError: the model cannot be loaded (see `load`) or has nothing to adapt, the text is too short, or the curve
            is not monotone. The manifest stays unchanged.
    """
    engine = load(folder, device=device, target=target, threads=threads, verify=verify)
    check_adapts(engine.manifest)
    choosing, reporting, name = halves(engine, folder, params)
    progress.log(f"{sum(len(one.ids) for one in choosing)} tokens of {name} to choose on, "
                 f"{sum(len(one.ids) for one in reporting)} to report on")  # fmt: skip
    searches: dict[ExpertRule, Search] = {}
    points: dict[ExpertRule, list[tuple[float, Thresholds]]] = {}
    for rule in expert_rules(engine.manifest):
        searches[rule] = Search(engine, choosing, progress, rule)
        points[rule] = searches[rule].points()
    losses = mean_losses({rule: search.steps for rule, search in searches.items()})
    chosen = min(losses, key=lambda rule: losses[rule])

    progress.show("measuring the points on the other half")
    results = {rule: against_full(engine, each, reporting) for rule, each in points.items()}
    check_rises([compute for compute, _ in points[chosen]], [one.score for one in results[chosen]])
    timed = _timed(engine, [thresholds for _, thresholds in points[chosen]], reporting, params)
    measured = zip(points[chosen], results[chosen], timed, strict=True)
    several = len(losses) > 1
    curve = Curve(
        text=name,
        tokens=results[chosen][0].score.tokens,
        machine=describe(engine.session),
        points=[curve_point(*point, result, times) for point, result, times in measured],
        agreement=agreements(engine, reporting, params.agreement, progress),
        expert_rule=chosen if several else None,
        rule_losses={rule: round(loss, 6) for rule, loss in losses.items()} if several else {},
    )
    write(folder, curve)
    by_rule = {
        rule: [curve_point(*point, result) for point, result in zip(each, results[rule], strict=True)]
        for rule, each in points.items()
    }
    names = [one.name for one in searches[chosen].mechanisms]
    return Calibrated(curve, names, engine.manifest.model.routes_heads, by_rule if several else {})


def check_adapts(manifest: Manifest) -> None:
    """Raise UserError if the model runs all of itself for every token."""
    if not adapts(manifest):
        raise UserError(
            "this model has nothing to adapt: no experts or heads chosen by mass, no depth routers, no exits; "
            "train another one with: adaptive train quickstart --set model.ffn.routing=top_p"
        )


def halves(engine: Engine, folder: Path, params: CalibrateParams) -> tuple[list[Window], list[Window], str]:
    """Return the windows to choose on, the windows to report on, and the name of the text.

    Raises:
        UserError: the text cannot be read or is too short.
    """
    text, name = read_text(engine, params.data, folder / "..", "--data")
    count = min(len(text.ids) - 1, params.tokens)
    if count < LEAST_TOKENS:
        raise UserError(
            f"found a text of {count} tokens, expected at least {LEAST_TOKENS}; give a longer one with: --data FILE"
        )
    # At least eight windows, so that both halves cover the whole text.
    length = min(engine.manifest.model.context_length, count // 8)
    cut = windows(text, count, length, bos=engine.tokenizer.bos_id)
    return cut[0::2], cut[1::2], name


def against_full(
    engine: Engine, points: Sequence[tuple[float, Thresholds]], texts: Sequence[Window]
) -> list[Divergence]:
    """Score every point, and measure how far it is from the last one, at which everything runs."""
    each = [Point(engine, thresholds) for _, thresholds in points]
    return diverge(each[-1], each, texts)


def curve_point(compute: float, thresholds: Thresholds, result: Divergence, timed: Timed | None = None) -> CurvePoint:
    """Return one point of the curve with its measurements."""
    own = result.score
    return CurvePoint(
        compute=compute,
        thresholds=ThresholdLists(**thresholds.as_lists()),
        executed_share=_share(own),
        loss=round(own.loss, 6),
        bits_per_byte=round(own.bits_per_byte, 6),
        kl=round(result.kl, 6),
        agreement=round(result.agreement, 6),
        **own.tally.means(),
        milliseconds_per_token=None if timed is None else Milliseconds(**asdict(timed.milliseconds)),
    )


def _share(result: Score) -> float:
    return min(round(result.executed_share, 6), 1.0)


def check_rises(computes: Sequence[float], scores: Sequence[Score]) -> None:
    """Raise UserError if a point with more compute executed less than one with less."""
    shares = [_share(result) for result in scores]
    if shares != sorted(shares):
        points = ", ".join(f"{compute:.3g} ran {share:.1%}" for compute, share in zip(computes, shares, strict=True))
        raise UserError(
            f"the dial is not monotone on the text to report on: compute {points}; nothing was written. "
            "Give more text with --data FILE and --tokens N"
        )


def _timed(
    engine: Engine, points: Sequence[Thresholds], texts: Sequence[Window], params: CalibrateParams
) -> list[Timed] | list[None]:
    if not params.repeats:
        return [None] * len(points)
    ids = [token for one in texts for token in one.ids]
    wanted = min(params.prompt_tokens + params.new_tokens, engine.manifest.model.context_length, len(ids))
    prompt = max(1, wanted - params.new_tokens)
    return time_points(engine, points, ids[:prompt], ids[prompt:wanted], repeats=params.repeats, seed=params.seed)


def agreements(
    engine: Engine, texts: Sequence[Window], shares: Sequence[float], progress: Progress
) -> list[ExitAgreement]:
    """Find the exit thresholds that keep the whole model's choices; the other thresholds are the model's own."""
    exits = [i for i, layer in enumerate(engine.manifest.model.layers) if layer.exit]
    if not exits or not shares:
        return []

    def read(threshold: float) -> Score:
        progress.show(f"comparing choices at exit threshold {threshold:g}")
        point = Thresholds.of(engine.manifest.thresholds)
        point.exit_threshold[exits] = threshold
        return score(engine, point, texts)

    whole = np.concatenate(read(1.0).choices)

    def compare(threshold: float) -> Compared:
        result = read(threshold)
        different = int((np.concatenate(result.choices) != whole).sum())
        return Compared(len(whole), different, result.tally.layers_per_token)

    return [
        ExitAgreement(
            share=one.share, confidence=CONFIDENCE, exit_threshold=one.exit_threshold,
            measured=round(1 - one.compared.different / one.compared.tokens, 6),
            layers_per_token=round(one.compared.layers_per_token, 4),
        )
        for one in agreement_bounds(compare, shares)
    ]  # fmt: skip


def write(folder: Path, curve: Curve) -> None:
    """Put the curve into the manifest. Its other sections and all other files stay unchanged.

    Raises:
        UserError: the manifest cannot be written; it is then untouched.
    """
    place = folder / MANIFEST
    content = upgrade(json.loads(place.read_bytes())) | {"curve": curve.model_dump(mode="json")}
    try:
        content["format_version"] = Manifest.model_validate(content).written_version
    except ValidationError as error:  # a bug, not a mistake of the user
        raise RuntimeError(f"the curve does not fit the manifest: {error}") from error
    write_output(place, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
