"""What is exported: a checkpoint, its tokenizer, and held-out text to judge it by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..contract.errors import UserError
from ..contract.file_names import CHAT_TEMPLATE, CONFIG, HELDOUT, TOKENIZER
from ..runtime.format.manifest import DialTable, DialTarget
from ..train.model import ModelConfig, Thresholds, Transformer
from ..train.model.controllers import GRID_POINTS
from ..train.model.thresholded_router import shifted
from ..train.run.best import checkpoint_of
from ..train.run.checkpoint import Checkpoint, load_checkpoint
from ..train.run.folder import RUNS, newest_run
from .graph.builder import Array

CALIBRATION_TOKENS = 4096
BESIDE = 1e-4
"""Ten times the margin of a near tie, and less than any threshold is known to."""


@dataclass(frozen=True)
class Source:
    checkpoint: Checkpoint
    model: Transformer
    tokenizer_json: str
    tokenizer: Tokenizer
    chat_template: str | None
    heldout: str
    """Text that the model was not trained on."""

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def heldout_ids(self, limit: int) -> Tensor:
        """The first `limit` tokens of the held-out text, (1, limit) or fewer."""
        characters = self.heldout[: 16 * limit]  # more than enough for `limit` tokens of any tokenizer here
        ids = self.tokenizer.encode(characters, add_special_tokens=False).ids[:limit]
        return torch.tensor([ids], dtype=torch.int64)

    def weights(self) -> dict[str, Array]:
        """name -> array of what the graph holds."""
        return weights_of(self.model)

    def thresholds(self) -> Thresholds:
        """What the controllers hold, those of heads set beside the scores that they were taken from."""
        levels = Thresholds(*(level.detach() for level in self.model.default_thresholds()))  # some may be learned
        scores, elsewhere = scores_of_ids(self.model), torch.empty(0)
        heads = [beside(float(one), elsewhere if layer else scores) for layer, one in enumerate(levels.head_top_p)]
        return levels._replace(head_top_p=torch.tensor(heads))


def weights_of(model: Transformer) -> dict[str, Array]:
    """name -> array of every parameter that the graph holds, tied ones once, and of the windows that were found.

    Levels, learned or controlled, are no part of it: they are numbers in the manifest and inputs of the graph.
    """
    levels, windows = ".level_logit", ".window_controller.window"
    found = {name: value.detach().numpy() for name, value in model.named_parameters() if not name.endswith(levels)}
    return found | {name: value.numpy() for name, value in model.named_buffers() if name.endswith(windows)}


def scores_of_ids(model: Transformer) -> Tensor:
    """The scores that the heads of the first layer can have at all, as its level sees them, sorted (n,): before the
    first attention a router knows nothing but the token's id."""
    block = model.blocks()[0]
    router = block.attention.head_router
    if router is None:
        return torch.empty(0)
    with torch.no_grad():
        routes = router(block.attention_norm(model.embedding.weight), torch.ones(()))
    moved = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
    return moved.flatten().sort().values


def beside(level: float, scores: Tensor) -> float:
    """A level of heads a little higher, if it is below 1, where none of `scores` (n,) stands.

    All occurrences of a frequent token have one and the same score in the first layer; a quantile of the scores is
    often just that one, and as a level it would leave the token undecided: one in twenty tokens was a near tie.
    """
    if level >= 1:
        return level  # every head
    tries = [min(level + BESIDE * (1 + step / 4), 1 - 2**-20) for step in range(80)]
    free = (each for each in tries if not len(scores) or (scores - each).abs().min() >= BESIDE / 2)
    return next(free, tries[0])


def find(name: str | None, which: str = "last") -> Path:
    """A run by name or path and `which` checkpoint of it, or a checkpoint by path; by default the newest run.

    Raises:
        UserError: there is no such run, or it has no such checkpoint.
    """
    path = newest_run().path if name is None else find_run(name)
    if which != "last" and not (path / "checkpoints").is_dir():
        raise UserError(f"--checkpoint {which} wants a run, but {path} is no folder of one; leave --checkpoint out")
    return checkpoint_of(path, which)


def find_run(name: str) -> Path:
    """A run by name or path, or a checkpoint by path.

    Raises:
        UserError: there is neither.
    """
    # the run first, since a folder that happens to lie here may share its name; that one is spelt ./NAME
    if Path(name).name == name and (RUNS / name / CONFIG).is_file():
        return RUNS / name
    if Path(name).is_dir():
        return Path(name)
    known = sorted(path.parent.name for path in RUNS.glob("*/config.yaml"))
    there = (
        f"runs here: {', '.join(known)}" if known else "there are no runs here; train one: adaptive train quickstart"
    )
    raise UserError(f"there is no run or checkpoint {name}; {there}")


def read(path: Path) -> Source:
    """Loads the checkpoint at `path` or the newest good one of the run there.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config.model
    model = Transformer(config).eval()
    model.load_state_dict(checkpoint.model_state)
    tokenizer_json = _text(checkpoint.run / TOKENIZER)
    template = checkpoint.run / CHAT_TEMPLATE
    source = Source(
        checkpoint,
        model,
        tokenizer_json,
        _tokenizer(tokenizer_json, checkpoint.run / TOKENIZER, config.vocab_size),
        _text(template) if template.exists() else None,
        _text(checkpoint.run / HELDOUT),
    )
    if source.heldout_ids(2).shape[1] < 2:
        raise UserError(f"{checkpoint.run / 'heldout.txt'} is too short to check an export by; train the run again")
    _calibrate_new(source)
    return source


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which would change the line ends of held-out text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}, a file of the run, cannot be read: {error}; restore it or train again") from error


def _tokenizer(content: str, path: Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is damaged: {error}; restore it or train again") from error
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, the model's vocabulary holds {vocab_size}; "
            "it is not this run's tokenizer: restore that, or train again"
        )
    return tokenizer


@torch.no_grad()
def _calibrate_new(source: Source) -> None:
    """Controllers of a model that was never trained have seen nothing: they look at held-out text once."""
    tables = [m for name, m in source.model.named_modules() if name.endswith("controller")]
    if tables and all(int(table.num_updates) == 0 for table in tables):
        ids = source.heldout_ids(CALIBRATION_TOKENS)
        length = min(source.config.context_length, ids.shape[1])
        windows = ids[:, : ids.shape[1] // length * length].view(-1, length)
        for _ in range(2):  # the second time with the depth that the first found
            source.model.observe(source.model(windows))


def dial(source: Source) -> DialTable:
    """For each wanted average the threshold of each layer: the controllers' quantile tables."""
    config = source.config
    experts: list[list[float] | None] = []
    heads: list[list[float] | None] = []
    depth: list[list[float] | None] = []
    chooses = config.heads.routing in ("top_p", "adaptive") and config.least_heads < config.most_heads
    for block in source.model.blocks():
        routed = block.moe is not None and config.ffn.routing == "top_p"
        experts.append(_table(block.moe.router.controller.table) if routed and block.moe else None)
        router = block.attention.head_router if chooses else None
        if router is None:
            heads.append(None)
        else:  # a level of 1 is every head, whatever the largest score seen
            known = torch.empty(0) if heads else scores_of_ids(source.model)
            levels = [beside(float(one), known) for one in router.controller.table[:-1]]
            heads.append([*_table(torch.tensor(levels).cummax(0).values), 1.0])
        # the manifest asks for the share that runs, the controller for the share that lies below the threshold
        depth.append(_table(block.depth_router.controller.table.flip(0)) if block.depth_router else None)
    return DialTable(
        grid=np.linspace(0, 1, GRID_POINTS).tolist(),
        router_top_p=experts,
        depth_threshold=depth,
        head_top_p=heads,
        target=DialTarget(
            experts_per_token=1.0 if config.ffn.routing == "dense" else config.ffn.experts_per_token,
            layers_share=config.depth.layers_share,
            heads_per_token=config.heads_per_token if config.heads.routing != "all" else None,
        ),
    )


def _table(table: Tensor) -> list[float]:
    return [float(value) for value in table.clamp(0, 1)]
