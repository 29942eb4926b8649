"""Walk the dial of a model: measure quality and speed at each point.

Each point has three shares that are easily confused:

    theoretical_share   FLOPs of the attention and experts that ran, over those of all layers with all experts: the
                        part that the thresholds decide
    executed_share      all FLOPs executed, with output head, routers, exit checks and keys of skipped layers, over all
                        FLOPs of the dense pass: what was left to compute
    measured_share      time per token, over that of the point `all`: what was gained. The ratio of the medians of each
                        round, which are close in time; of these the median over the rounds
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..dial import CALIBRATED, Dial, Thresholds, at_compute, resolve
from ..format.manifest import Manifest
from ..generation.engine import Engine
from .quality.perplexity import Text, bits_per_byte
from .timing import Timed, time_points

EXPERTS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
TOP_P = (0.1, 0.2, 0.4, 0.6, 0.8)  # for a model without a table
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8)
LAYERS_SHARE = (0.85, 0.7, 0.5, 0.3)
DEPTH_THRESHOLD = (0.3, 0.5, 0.7, 0.9)  # for a model without a table
EXIT_THRESHOLD = (0.95, 0.8, 0.6, 0.4)


@dataclass(frozen=True)
class Point:
    """A named point of the dial."""

    name: str
    thresholds: Thresholds


def points(manifest: Manifest, dial: Dial) -> list[Point]:
    """List the points to measure: `all` of the model, then each direction of the dial, from much to little.

    The other directions stay as `dial` sets them, or else as the model's own thresholds do.
    """
    model, table = manifest.model, manifest.dial
    everything = Thresholds.everything(model.num_layers)
    walked = [("all", everything), ("default", resolve(manifest, dial))]
    single = asdict(dial) | dict.fromkeys(CALIBRATED)  # a point of the curve sets all thresholds, a walk only one

    def walk(label: str, values: Sequence[float], replaces: tuple[str, str | None]) -> None:
        for value in values:
            own, other = replaces
            changed = single | {own: value} | ({other: None} if other else {})
            walked.append((f"{label} {value:g}", resolve(manifest, Dial(**changed))))

    routed = [i for i, layer in enumerate(model.layers) if layer.dials_experts]
    if routed and all(table.router_top_p[i] is not None for i in routed):
        most = min(model.layers[i].candidates for i in routed)
        values = [value for value in EXPERTS if value < most]
        walk("experts", [most, *reversed(values)], ("experts", "router_top_p"))
    elif routed:
        walk("router_top_p", [1, *reversed(TOP_P)], ("router_top_p", "experts"))
    if model.dials_ratio:
        walk("router_ratio", RATIOS, ("router_ratio", "experts"))
    if model.dials_heads:
        by_mass = [i for i, layer in enumerate(model.layers) if layer.head_routing in ("top_p", "adaptive")]
        least, most = (max(ends) for ends in zip(*(model.layers[i].head_range(model.num_heads) for i in by_mass),
                                                 strict=True))  # fmt: skip
        if table.head_top_p and all(table.head_top_p[i] is not None for i in by_mass):
            walk("heads", _evenly(most, least), ("heads", "head_top_p"))
        else:
            walk("head_top_p", [1, *reversed(TOP_P)], ("head_top_p", "heads"))
    routers = [i for i, layer in enumerate(model.layers) if layer.depth_router]
    if routers and all(table.depth_threshold[i] is not None for i in routers):
        walk("layers", [1, *LAYERS_SHARE], ("layers_share", "depth_threshold"))
    elif routers:
        walk("depth", [0, *DEPTH_THRESHOLD], ("depth_threshold", "layers_share"))
    if any(layer.exit for layer in model.layers):
        walk("exit", EXIT_THRESHOLD, ("exit_threshold", None))
    if manifest.curve:
        computes = [point.compute for point in manifest.curve.points]
        walked += [(f"compute {value:.3g}", at_compute(manifest.curve, value)) for value in reversed(computes)]

    unique: list[Point] = []
    for name, thresholds in walked:
        if all(thresholds.as_lists() != point.thresholds.as_lists() for point in unique):
            unique.append(Point(name, thresholds))
    return unique


def _evenly(most: int, least: int) -> list[int]:
    """Return at most eight values from `most` down to `least`."""
    step = -(-(most - least) // 7) or 1
    return [*range(most, least, -step), least]


def sweep(
    engine: Engine, walked: Sequence[Point], prompt: Sequence[int], answer: Sequence[int], text: Text | None, *,
    repeats: int, seed: int, max_tokens: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure every point. Without a text there are no bits per byte."""
    timed = time_points(engine, [p.thresholds for p in walked], prompt, answer, repeats=repeats, seed=seed)
    quality = [bits_per_byte(engine, p.thresholds, text, max_tokens) if text else None for p in walked]
    return [
        point_json(point, result, bits, timed[0]) for point, result, bits in zip(walked, timed, quality, strict=True)
    ]


def point_json(point: Point, timed: Timed, bits: float | None, whole: Timed) -> dict[str, Any]:
    """Return one point as `bench --json` writes it; `whole` is the point `all`."""
    tally = timed.tally
    return {
        "name": point.name,
        "thresholds": point.thresholds.as_lists(),
        **tally.means(),
        "theoretical_share": round(tally.adaptive_flops / tally.adaptive_dense_flops, 5),
        "executed_share": round(tally.share, 5),
        "measured_share": round(float(np.median(timed.medians / whole.medians)), 5),
        "milliseconds_per_token": {name: round(value, 5) for name, value in asdict(timed.milliseconds).items()},
        "spread": round(timed.spread, 4),
        "bits_per_byte": None if bits is None else round(bits, 5),
    }
