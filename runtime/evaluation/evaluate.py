"""`adaptive eval`: the loss of a model on texts, its distance from a reference, and its results in tasks.

Long texts are read in windows that overlap. Every token but the first of a text is scored once, after the tokens before
it in its window; with the default stride, half a window at least precedes each token after the first window. A model
whose prompts begin with a BOS token reads it at the beginning of each window, and its first token is scored too.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import HELDOUT
from ..dial import resolve
from ..generation.engine import Engine, load
from ..measuring.bench import tokens_to_read
from ..measuring.machine import describe
from ..measuring.quality.divergence import Point, diverge
from ..measuring.quality.given_text import read_text
from ..measuring.quality.perplexity import Text, Window, score, windows
from ..measuring.timing import Timed, time_points
from ..terminal.progress import Progress
from .figures import Scored, point_json
from .params import LONGEST_WINDOW, EvalParams, name_of

if TYPE_CHECKING:
    from .harness.tasks import Tasks

FIRST = ("loss", "perplexity", "bits_per_byte", "tokens", "kl", "agreement", "tasks")
"""Figures of the first point that stand at the top of the output too."""


def evaluate(
    folder: Path, params: EvalParams, progress: Progress, *, device: str = "auto", target: str = "auto",
    threads: int | None = None, verify: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate the model in `folder`; return all figures under the keys of `eval --json`.

    Raises:
        UserError: A model cannot be loaded (see `load`) or has no such dial, a text cannot be read, the reference has
            another vocabulary, or a task cannot be run.
    """
    tasks = load_tasks(params, progress)
    engine = load(folder, device=device, target=target, threads=threads, verify=verify)
    if tasks is not None:
        tasks.check(engine)
    reference = None
    if params.has_reference:
        place = params.against or folder
        other = engine
        if place.resolve() != folder.resolve():
            other = load(place, device=device, target=target, threads=threads, verify=verify)
            check_vocabulary(folder, engine, place, other)
        reference = Point(other, resolve(other.manifest, params.against_dial))
    points = [Point(engine, resolve(engine.manifest, dial)) for dial in params.dials]
    window, stride = lengths(points if reference is None else [*points, reference], params)
    texts = read_texts(engine, folder, params)

    by_text = {}
    for name, text in texts.items():
        cut = windows(text, params.tokens or len(text.ids), window, stride, engine.tokenizer.bos_id)
        progress.show(f"scoring {sum(len(one.targets) for one in cut)} tokens of {name}")
        by_text[name] = scores(points, reference, cut)
    timed, origin = _timed(points, folder, texts, params, progress)
    in_tasks = [] if tasks is None else [tasks.run(engine, dial, progress) for dial in params.dials]

    measured = []
    for place_of, (dial, point) in enumerate(zip(params.dials, points, strict=True)):
        one = point_json(dial, point, {name: each[place_of] for name, each in by_text.items()}, timed[place_of])
        measured.append(one | ({"tasks": in_tasks[place_of][0]} if in_tasks else {}))
    settings = {
        "window": window, "stride": stride, "bos": engine.tokenizer.bos_id is not None, "tokens": params.tokens,
        "repeats": params.rounds, "prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens,
        "seed": params.seed, "tokens_from": origin,
    }  # fmt: skip
    result = {"model": str(folder), "machine": describe(engine.session), "settings": settings}
    if reference is not None:
        name = name_of(params.against_dial)
        result["against"] = {
            "model": str(params.against or folder), "name": name, "thresholds": reference.thresholds.as_lists()
        }  # fmt: skip
    if in_tasks:
        result["harness"] = in_tasks[0][1]
    return result | {key: measured[0][key] for key in FIRST if key in measured[0]} | {"points": measured}


def load_tasks(params: EvalParams, progress: Progress) -> "Tasks | None":
    """Load the tasks, before the models: they need an extra, and a mistyped name shows at once."""
    if params.tasks is None:
        return None
    from .harness.tasks import Tasks

    progress.show("loading the tasks")
    return Tasks(params.tasks)


def check_vocabulary(folder: Path, engine: Engine, place: Path, other: Engine) -> None:
    """Raise UserError unless two models have the same token for every id."""
    if engine.tokenizer.vocabulary != other.tokenizer.vocabulary:
        raise UserError(
            f"{place} has another vocabulary than {folder}: {other.tokenizer.size} ids and {engine.tokenizer.size}, "
            "expected the same token for every id; compare their bits per byte, which need no common tokens: leave "
            "--against out, and evaluate each model on the same --data FILE"
        )


def lengths(models: list[Point], params: EvalParams) -> tuple[int, int]:
    """Return the tokens of a window, and from one window to the next.

    Raises:
        WrongUsageError: They do not fit a model, or each other.
    """
    context = min(one.engine.manifest.model.context_length for one in models)
    window = params.window or min(context, LONGEST_WINDOW)
    if window > context:
        raise WrongUsageError(f"found window {window}, the context is {context} tokens; give at most that")
    stride = params.stride or max(window // 2, 1)
    if stride > window:
        raise WrongUsageError(
            f"found stride {stride} for windows of {window} tokens, which would leave tokens out; give at most {window}"
        )
    return window, stride


def read_texts(engine: Engine, folder: Path, params: EvalParams) -> dict[str, Text]:
    """Return the texts to score by their names; none where only tasks are requested.

    Raises:
        UserError: A text cannot be read, or has less than two tokens.
    """
    given: tuple[Path | None, ...] = params.data
    if not given and params.tasks is None:
        given = (None,)
    texts = {}
    for path in given:
        text, name = read_text(engine, path, folder / "..", "--data", least=2)  # the first token is not scored
        texts[str(path or name)] = text
    return texts


def scores(points: list[Point], reference: Point | None, cut: list[Window]) -> list[Scored]:
    """Return the score of each point on the windows of one text, with its distance from the reference."""
    if reference is None:
        return [Scored(score(one.engine, one.thresholds, cut), None) for one in points]
    return [Scored(one.score, one) for one in diverge(reference, points, cut)]


def _timed(
    points: list[Point], folder: Path, texts: dict[str, Text], params: EvalParams, progress: Progress
) -> tuple[list[Timed] | list[None], str | None]:
    """Return the times of each point, and where the tokens that they read are from."""
    if not params.rounds:
        return [None] * len(points), None
    engine = points[0].engine
    count = min(params.prompt_tokens + params.new_tokens, engine.manifest.model.context_length)
    text = next(iter(texts.values()), None)
    if text is None and (folder / ".." / HELDOUT).is_file():
        text, _ = read_text(engine, None, folder / "..", "--data")
    ids, origin = tokens_to_read(engine, text, count, params.seed)
    prompt = max(1, count - params.new_tokens)
    progress.show("timing the points of the dial")
    timed = time_points(
        engine, [one.thresholds for one in points], ids[:prompt], ids[prompt:], repeats=params.rounds, seed=params.seed
    )
    return timed, origin
