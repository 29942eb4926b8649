"""`adaptive calibrate`: measures, on held-out text, which thresholds lose least for each share of the compute.

The text is cut into windows; those with an even number choose, those with an odd number report, so that no figure of
the curve comes from tokens that its thresholds were chosen on.
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
from ..format import schema
from ..format.files import write_output
from ..format.manifest import Curve, CurvePoint, ExitAgreement, Manifest, Milliseconds
from ..format.upgrade import upgrade
from ..generation.engine import Engine, load
from ..measuring.given_text import read_text
from ..measuring.machine import describe
from ..measuring.perplexity import Score, Window, score, windows
from ..measuring.timing import Timed, time_points
from ..terminal.progress import Progress
from .agreement import CONFIDENCE, Compared, promises
from .curve_points import Search
from .mechanisms import mechanisms

LEAST_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class CalibrateParams:
    """data: None takes the held-out text of the run; tokens: of it, half to choose on and half to report on.

    agreement: shares of tokens that shall choose as the whole model; for models with exits.
    prompt_tokens, new_tokens, repeats: of the timing, as in `adaptive bench`; repeats 0 measures no times.
    """

    data: Path | None = None
    tokens: int = 16384
    agreement: tuple[float, ...] = (0.9, 0.95, 0.99)
    prompt_tokens: int = 32
    new_tokens: int = 64
    repeats: int = 11
    seed: int = 0

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

    @property
    def time_falls(self) -> list[tuple[float, float]]:
        """Neighbouring points (compute of the less, of the more) of which the one with less took no less time."""
        timed = [(one.compute, one.milliseconds_per_token.median) for one in self.curve.points
                 if one.milliseconds_per_token]  # fmt: skip
        return [(less, more) for (less, a), (more, b) in pairwise(timed) if a >= b]

    def as_json(self) -> dict[str, Any]:
        return {"mechanisms": self.mechanisms, "curve": self.curve.model_dump(mode="json"),
                "executed_rises": True, "time_rises": not self.time_falls, "time_falls": self.time_falls}  # fmt: skip


def calibrate(
    folder: Path, params: CalibrateParams, progress: Progress, *, device: str = "auto", threads: int | None = None,
    verify: bool = True,
) -> Calibrated:  # fmt: skip
    """Measure the curve of the model in `folder` and write it into the manifest, whole or not at all.

    Raises UserError as `load` does, for a model with nothing to adapt, for a text too short, and for a curve that is
    not monotone; in each case the manifest is as it was.
    """
    engine = load(folder, device=device, threads=threads, verify=verify)
    check_adapts(engine.manifest)
    choosing, reporting, name = halves(engine, folder, params)
    progress.say(f"{sum(len(one.ids) for one in choosing)} tokens of {name} to choose on, "
                 f"{sum(len(one.ids) for one in reporting)} to report on")  # fmt: skip
    search = Search(engine, choosing, progress)
    points = search.points()

    progress.show("measuring the points on the other half")
    scores = [score(engine, thresholds, reporting) for _, thresholds in points]
    check_rises([compute for compute, _ in points], scores)
    timed = _timed(engine, [thresholds for _, thresholds in points], reporting, params)
    measured = zip(points, scores, timed, strict=True)
    curve = Curve(
        text=name,
        tokens=scores[0].tally.tokens,
        machine=describe(engine.session),
        points=[curve_point(*point, found, times) for point, found, times in measured],
        agreement=agreements(engine, reporting, params.agreement, progress),
    )
    write(folder, curve)
    return Calibrated(curve, [one.name for one in search.mechanisms], engine.manifest.model.routes_heads)


def check_adapts(manifest: Manifest) -> None:
    """Raises UserError for a model that runs all of itself for every token."""
    if not mechanisms(manifest) and not any(layer.exit for layer in manifest.model.layers):
        raise UserError(
            "this model has nothing to adapt: no experts or heads chosen by mass, no depth routers, no exits, so its "
            "compute is what it is; train one with: adaptive train quickstart --set model.ffn.routing=top_p"
        )


def halves(engine: Engine, folder: Path, params: CalibrateParams) -> tuple[list[Window], list[Window], str]:
    """Windows to choose on, windows to report on, and the name of the text."""
    text, name = read_text(engine, params.data, folder / "..", "--data")
    count = min(len(text.ids) - 1, params.tokens)
    if count < LEAST_TOKENS:
        raise UserError(
            f"found a text of {count} tokens, expected at least {LEAST_TOKENS}; give a longer one with: --data FILE"
        )
    # Eight windows at least, so that both halves are of the whole text.
    length = min(engine.manifest.model.context_length, count // 8)
    found = windows(text, count, length)
    return found[0::2], found[1::2], name


def curve_point(compute: float, thresholds: Thresholds, found: Score, timed: Timed | None = None) -> CurvePoint:
    """One point, with what was measured there."""
    tally = found.tally
    return CurvePoint(
        compute=compute,
        thresholds=schema.ThresholdLists(**thresholds.as_lists()),
        executed_share=_share(found),
        loss=round(found.loss, 6),
        bits_per_byte=round(found.bits_per_byte, 6),
        experts_per_token=round(tally.experts / tally.layers, 4),
        heads_per_token=round(tally.heads / tally.layers, 4),
        layers_per_token=round(tally.layers / tally.tokens, 4),
        milliseconds_per_token=None if timed is None else Milliseconds(**asdict(timed.milliseconds)),
    )


def _share(found: Score) -> float:
    return min(round(found.executed_share, 6), 1.0)


def check_rises(computes: Sequence[float], scores: Sequence[Score]) -> None:
    """Raises UserError for a curve on which more compute was less executed."""
    shares = [_share(found) for found in scores]
    if shares != sorted(shares):
        told = ", ".join(f"{compute:.3g} ran {share:.1%}" for compute, share in zip(computes, shares, strict=True))
        raise UserError(
            f"the dial is not monotone on the text to report on: compute {told}; nothing was written. "
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
    """The exit thresholds that keep the whole model's choice; the other thresholds are the model's own."""
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
        found = read(threshold)
        different = int((np.concatenate(found.choices) != whole).sum())
        return Compared(len(whole), different, found.tally.layers / found.tally.tokens)

    return [
        ExitAgreement(
            share=one.share, confidence=CONFIDENCE, exit_threshold=one.exit_threshold,
            measured=round(1 - one.compared.different / one.compared.tokens, 6),
            layers_per_token=round(one.compared.layers_per_token, 4),
        )
        for one in promises(compare, shares)
    ]  # fmt: skip


def write(folder: Path, curve: Curve) -> None:
    """Put the curve into the manifest; all else in it, and every other file, stays as it is."""
    place = folder / MANIFEST
    content = upgrade(json.loads(place.read_bytes())) | {"curve": curve.model_dump(mode="json")}
    try:
        Manifest.model_validate(content)
    except ValidationError as error:  # ours, not a person's
        raise RuntimeError(f"the curve does not fit the manifest: {error}") from error
    write_output(place, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
