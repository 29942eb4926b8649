"""`adaptive inspect`: read a text with an exported model, and collect the figures.

The text is cut into pieces of the model's context; each is read from an empty cache, in one pass as a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...contract.errors import UserError, WrongUsageError
from ..dial import Dial, Thresholds, resolve, warnings_for
from ..execution.memory.kv_cache import cache_bytes
from ..execution.memory.states import state_bytes
from ..execution.usage.cost import Usage
from ..execution.usage.routes import Routes, between, joined
from ..format.manifest import Model
from ..generation.engine import Engine, load
from ..measuring.machine import describe
from ..measuring.quality.given_text import read_text
from .figures import parts_of, window_uses
from .inspection import Inspection
from .saturation import saturations
from .task_texts import TaskText, joined_text, read_task_texts
from .token_groups import by_class, by_position, by_task, by_token

FEW_TOKENS = 512
"""Tokens below which shares are rough."""
SAMPLE = 400
"""Tokens of the text that the page shows with the usage of each."""


@dataclass(frozen=True, kw_only=True)
class InspectParams:
    """Parameters of an inspection.

    Raises:
        WrongUsageError: a number is outside its range.
    """

    data: Path | None = None
    """Text to read; None takes the held-out text of the run."""
    tokens: int = 16384
    """Tokens of the text to read, at most; at least 1."""
    frequent: int = 20
    """Frequent tokens that get a group each, at least 1."""
    dead_below: float = 0.001
    """A unit that a smaller share of a layer's tokens uses is dead; 0 to 1."""
    dial: Dial = field(default_factory=Dial)
    """The point of the dial at which the model runs."""

    def __post_init__(self) -> None:
        for name in ("tokens", "frequent"):
            if getattr(self, name) < 1:
                raise WrongUsageError(f"found {name} {getattr(self, name)}, expected at least 1")
        if not 0 <= self.dead_below <= 1:
            raise WrongUsageError(f"found dead_below {self.dead_below}, expected 0 to 1, such as 0.001")


def inspect_model(
    folder: Path,
    params: InspectParams,
    *,
    run: Path | None = None,
    device: str = "auto",
    target: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Inspection:
    """Read the text with the model in `folder`, and count what it uses.

    Args:
        folder: The folder of the exported model.
        params: The text, and how to count.
        run: The folder of the run of the model; None takes the parent of `folder`.
        device: See `load`.
        target: See `load`.
        threads: See `load`.
        verify: See `load`.

    Raises:
        UserError: the model cannot be loaded or chooses nothing, or there is no text.
    """
    run = run or folder / ".."
    engine = load(folder, device=device, target=target, threads=threads, verify=verify)
    check_chooses(engine.manifest.model)
    thresholds = resolve(engine.manifest, params.dial)
    parts, name = texts_of(engine, params, run)
    text = joined_text(parts)
    ids, spans = text.ids, text.spans
    routes = joined([read(engine, thresholds, part.text.ids, part.lead) for part in parts])
    groupings = [
        by_class(text.text, spans),
        by_position(routes.positions),
        by_token(ids, [text.text[slice(*span)] for span in spans], params.frequent),
    ]
    if len(parts) > 1:
        groupings.append(by_task([part.name for part in parts], [len(part.text.ids) for part in parts]))
    spent = engine.session.meter.spent(routes)
    unknown = 0 if engine.tokenizer.unknown_id is None else ids.count(engine.tokenizer.unknown_id)
    model = engine.manifest.model
    made_by = engine.manifest.created_by
    step, teacher = made_by.get("step"), made_by.get("teacher")
    settled, damaged = saturations(run, step if isinstance(step, int) else None)
    return Inspection(
        model=str(folder),
        text=name,
        tokens=len(ids),
        unknown=unknown,
        thresholds=thresholds,
        executed_share=float(spent.executed[0].sum() / spent.dense[0].sum()),
        dead_below=params.dead_below,
        groupings=tuple(groupings),
        parts=tuple(parts_of(model, routes, tuple(groupings), params.dead_below)),
        window_uses=tuple(window_uses(model, routes, tuple(groupings))),
        sample=tuple(_sample(engine, text.text, spans, routes)),
        mixers=tuple(layer.mixer for layer in model.layers),
        weight_bytes=engine.session.file_bytes,
        cache_bytes=cache_bytes(model, model.context_length, engine.session.graph.kv),
        state_bytes=state_bytes(model),
        saturations=tuple(settled),
        warnings=(*_warnings(engine, params, len(ids), unknown), *damaged),
        teacher=teacher if isinstance(teacher, str) else None,
    )


def check_chooses(model: Model) -> None:
    """Raise UserError if the model uses all of itself for every token."""
    chooses = any(
        (one.routing != "dense" and one.num_experts > 1) or one.head_routing != "all" or one.depth_router or one.exit
        or one.window for one in model.layers
    )  # fmt: skip
    if not chooses:
        raise UserError(
            "this model has nothing to inspect: found no routed experts or heads, no layer that a token can skip and "
            "no window, expected at least one; train one with: adaptive train quickstart --set model.ffn.routing=top_p"
        )


def texts_of(engine: Engine, params: InspectParams, run: Path) -> tuple[list[TaskText], str]:
    """Return the texts to read, each cut to its part of `params.tokens`, and their name.

    They are the given text, or else the held-out texts of the tasks of the run, or its only held-out text.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    tasks = read_task_texts(engine, run) if params.data is None else []
    if tasks:
        each = max(1, params.tokens // len(tasks))
        return [task.cut(each) for task in tasks], f"held-out text of {len(tasks)} tasks"
    text, name = read_text(engine, params.data, run, "--data")
    return [TaskText("", text).cut(params.tokens)], name


def read(engine: Engine, thresholds: Thresholds, ids: Sequence[int], lead: int | None = None) -> Routes:
    """Return the routes of all ids; every piece of the context's length is read from an empty cache.

    With `lead`, the token of a task, each piece is read after it, as in training; its own routes are left out.
    """
    before = [] if lead is None else [lead]
    room = engine.manifest.model.context_length - len(before)
    sequence = engine.session.sequence(thresholds, min(len(ids), room) + len(before))
    passes = []
    for begin in range(0, len(ids), room):
        piece = [*before, *ids[begin : begin + room]]
        sequence.rewind(0)
        routes = sequence.prefill(piece).routes
        passes.append(between(routes, len(before), len(piece), routes.exits_open) if before else routes)
    return joined(passes)


def _sample(
    engine: Engine, text: str, spans: Sequence[tuple[int, int]], routes: Routes
) -> list[tuple[str, Usage]]:  # fmt: skip
    """Return text and usage of the first tokens. Joined, the texts are the text, with all its white space."""
    sample: list[tuple[str, Usage]] = []
    shown = 0
    for token, (_, end) in enumerate(spans[:SAMPLE]):
        sample.append((text[shown:end], engine.session.meter.usage(routes, token)))
        shown = max(shown, end)
    return sample


def _warnings(engine: Engine, params: InspectParams, tokens: int, unknown: int) -> list[str]:
    warnings = warnings_for(engine.manifest, params.dial, describe(engine.session)) if params.dial.calibrated else []
    if tokens < FEW_TOKENS:
        warnings.append(f"only {tokens} tokens were read, so shares are rough; read {FEW_TOKENS} or more")
    if unknown:
        warnings.append(f"{unknown} of {tokens} tokens are unknown to this model's tokenizer")
    return warnings
