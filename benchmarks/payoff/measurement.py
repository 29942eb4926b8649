"""Quality, work and time of the trained models, on ONNX Runtime with the target `cpu`, in int8 and in fp32.

A model is exported with the full check and scored on text that it was not trained on. Those with thresholds are
calibrated on another text; the thresholds of the int8 model's curve are used in fp32 as well. Scores are kept beside
the model. Times are taken of all models and points in alternation, in one process, on one thread.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptive_lm.runtime import Dial, Engine, load
from adaptive_lm.runtime.dial import Thresholds, resolve
from adaptive_lm.runtime.measuring.quality.given_text import read_text
from adaptive_lm.runtime.measuring.quality.perplexity import Text, score, windows
from adaptive_lm.runtime.measuring.timing import Distribution, Timed, time_engines
from payoff.entrants import DIALED, EXITS, run_name, span
from payoff.text import Texts
from payoff.training import saved_step
from processes.command import adaptive

PRECISIONS = ("int8", "fp32")
TRAINED = "trained"
"""The point of the thresholds of training; with exits, that at which 95 % of the tokens keep their choice."""
AGREEMENT = 0.95


@dataclass
class Row:
    """Measurements of a model at a point of its dial, in one precision."""

    entrant: str
    seed: int
    precision: str
    point: str
    """TRAINED, or the compute of a calibrated point."""
    steps: int
    """Steps of the training."""
    nats: float
    """Held-out loss, nats per token."""
    bits: float
    """Held-out bits per byte."""
    flops: float
    """FLOPs executed per token of the held-out text."""
    experts: float
    """Experts per token and layer run."""
    layers: float
    """Layers per token."""
    bytes: float
    """Bytes of weights and cache read per decoded token."""
    weights: int
    """Bytes of all weights."""
    milliseconds: float = float("nan")
    """CPU time per decoded token: median over the rounds."""
    low: float = float("nan")
    """5th percentile of it."""
    high: float = float("nan")
    """95th percentile of it."""
    rounds: tuple[float, ...] = ()
    """Mean of the tokens of each round."""


def model_folder(folder: Path, entrant: str, seed: int, precision: str) -> Path:
    """Return the folder of an exported model."""
    return folder / "runs" / run_name(entrant, seed) / precision


def export(folder: Path, entrant: str, seed: int, texts: Texts) -> None:
    """Export a trained model in both precisions, and calibrate the one in int8, unless that is done."""
    for precision in PRECISIONS:
        out = model_folder(folder, entrant, seed, precision)
        if not (out / "manifest.json").exists():
            narrow = [] if precision == "fp32" else ["--quantize", precision, "--kv", "fp16"]
            name = run_name(entrant, seed)
            adaptive("export", name, "--out", str(out), "--target", "cpu", "--threads", "1", *narrow, folder=folder)
    model = model_folder(folder, entrant, seed, "int8")
    if entrant in DIALED and open_model(model).manifest.curve is None:
        data = ["--data", str(texts.calibration), "--repeats", "0", "--threads", "1", "--target", "cpu"]
        adaptive("calibrate", "--model", str(model), *data, folder=folder)


def open_model(model: Path) -> Engine:
    """Open an exported model as it is measured."""
    return load(model, device="cpu", target="cpu", threads=1)


def points(folder: Path, entrant: str, seed: int) -> dict[str, Thresholds]:
    """Return the points of the dial that are measured, from the curve of the model in int8."""
    manifest = open_model(model_folder(folder, entrant, seed, "int8")).manifest
    curve = manifest.curve
    agreement = AGREEMENT if entrant == EXITS and curve is not None and curve.agreement else None
    result = {TRAINED: resolve(manifest, Dial(agreement=agreement))}
    for point in curve.points if curve is not None else ():
        result[f"{point.compute:.3g}"] = resolve(manifest, Dial(compute=point.compute))
    return result


def rows_of(folder: Path, entrant: str, seed: int, tokens: int) -> list[Row]:
    """Score a model at its points in both precisions, or read the scores of an earlier call."""
    saved = folder / "runs" / run_name(entrant, seed) / f"scores-{tokens}.json"
    if saved.exists():
        return [Row(**row) for row in json.loads(saved.read_text("utf-8"))]
    rows = []
    dial = points(folder, entrant, seed)
    steps = saved_step(folder / "runs" / run_name(entrant, seed))
    for precision in PRECISIONS:
        engine = open_model(model_folder(folder, entrant, seed, precision))
        text = held_out(folder, entrant, seed, engine)
        cut = windows(text, tokens, engine.manifest.model.context_length)
        weights = engine.manifest.files[engine.manifest.targets["cpu"].data].bytes
        for point, thresholds in dial.items():
            scored = score(engine, thresholds, cut)
            tally = scored.tally
            row = Row(
                entrant=entrant,
                seed=seed,
                precision=precision,
                point=point,
                steps=steps,
                nats=scored.loss,
                bits=scored.bits_per_byte,
                flops=tally.executed_flops / tally.tokens,
                experts=tally.experts / tally.layers,
                layers=tally.layers / tally.tokens,
                bytes=tally.executed_bytes / tally.tokens,
                weights=weights,
            )
            rows.append(row)
    unfinished = saved.with_suffix(".part")
    unfinished.write_text(json.dumps([asdict(row) for row in rows]), "utf-8")
    unfinished.replace(saved)
    return rows


def held_out(folder: Path, entrant: str, seed: int, engine: Engine) -> Text:
    """Read the held-out text of a run: the same for all."""
    return read_text(engine, None, folder / "runs" / run_name(entrant, seed), "--data")[0]


def means(timed: Timed) -> NDArray[np.float64]:
    """Return CPU milliseconds per token, the mean of each round: tokens of an adaptive model differ in their work."""
    return np.asarray(1000 * np.mean(np.array(timed.rounds_cpu), axis=1))


def time_rows(folder: Path, rows: Sequence[Row], precision: str, repeats: int) -> None:
    """Time the rows of a precision in alternation, on the same held-out tokens, and fill in their times."""
    wanted = [row for row in rows if row.precision == precision]
    engines: dict[tuple[str, int], Engine] = {}
    dials: dict[tuple[str, int], dict[str, Thresholds]] = {}
    for row in wanted:
        who = row.entrant, row.seed
        if who not in engines:
            engines[who] = open_model(model_folder(folder, *who, precision))
            dials[who] = points(folder, *who)
    first = wanted[0]
    engine = engines[first.entrant, first.seed]
    ids = held_out(folder, first.entrant, first.seed, engine).ids
    prompt, answer = span(engine.manifest.model.context_length)
    cases = [(engines[row.entrant, row.seed], dials[row.entrant, row.seed][row.point]) for row in wanted]
    timed = time_engines(cases, ids[:prompt], ids[prompt : prompt + answer], repeats=repeats, seed=0)
    for row, one in zip(wanted, timed, strict=True):
        row.rounds = tuple(means(one).tolist())
        spread = Distribution.of(row.rounds)
        row.milliseconds, row.low, row.high = spread.median, spread.p5, spread.p95
        row.bytes = one.tally.executed_bytes / one.tally.tokens
