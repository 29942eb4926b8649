"""The source of an export: a checkpoint, its tokenizer, and held-out text to check it with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..contract.errors import UserError
from ..contract.file_names import CHAT_TEMPLATE, GENERATION, HELDOUT, TOKENIZER
from ..contract.generation_settings import GenerationSettings
from ..contract.messages import EOS
from ..runtime.format.manifest import DialTable, DialTarget
from ..runtime.ops.layout import from_bfloat16
from ..train.data.tokenizers.ids import vocabulary_size
from ..train.loop.divergence import all_finite, divergence_error
from ..train.model import ModelConfig, ThresholdTensors, Transformer
from ..train.model.routing.controllers import GRID_POINTS
from ..train.model.routing.thresholded_router import shifted
from ..train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from ..train.run.folder import Run
from .graph.builder import Array
from .graph.lazy_array import LazyArray
from .streaming import load
from .task_gates import with_gates_of

CALIBRATION_TOKENS = 4096
"""Held-out tokens shown to the controllers of a model that was never trained."""
TIE_DISTANCE = 1e-4
"""Distance to keep between a level and the scores near it: ten times the margin of a near tie, and less than the
precision to which a threshold is known."""
FINITE_TOKENS = 512
"""Held-out tokens whose logits must be finite."""
FINITE_WEIGHTS = 2**24
"""Weights, and logits, that are tested for being finite at a time."""


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint with the files of its run that an export needs."""

    checkpoint: Checkpoint
    """The checkpoint as it was read."""
    model: Transformer
    """The model with its weights, in eval mode."""
    tokenizer_json: str
    """Content of the run's tokenizer.json."""
    tokenizer: Tokenizer
    """The same, loaded."""
    chat_template: str | None
    """The run's chat template, a Jinja text; None where it was not trained on chats."""
    generation: GenerationSettings
    """Ends, special tokens and defaults of sampling: those that an import wrote, else those of a run trained here."""
    templates: dict[str, str]
    """Chat templates besides the main one, by name."""
    heldout: str
    """Text that the model was not trained on."""

    @property
    def config(self) -> ModelConfig:
        """The config of the model."""
        return self.model.config

    def heldout_ids(self, limit: int) -> Tensor:
        """Return the first `limit` tokens of the held-out text, (1, limit) or fewer."""
        characters = self.heldout[: 16 * limit]  # more than enough for `limit` tokens of any tokenizer here
        ids = self.tokenizer.encode(characters, add_special_tokens=False).ids[:limit]
        return torch.tensor([ids], dtype=torch.int64)

    def weights(self) -> dict[str, LazyArray]:
        """Return the arrays that the graph holds, by name; large ones are read from the checkpoint when used."""
        return {
            name: stored_lazily(self.checkpoint.model_state[name] if value.is_meta else value)
            for name, value in _tensors_of_graph(self.model).items()
        }

    def parameters(self) -> Iterator[Tensor]:
        """Yield every parameter; those that are not in memory in pieces, in the dtype of the checkpoint."""
        for name, value in self.model.named_parameters():
            if value.is_meta:
                yield from torch.split(self.checkpoint.model_state[name], max(1, FINITE_WEIGHTS // value[0].numel()))
            else:
                yield value

    def thresholds(self) -> ThresholdTensors:
        """Return the levels of the controllers, those of heads moved off the scores that they were taken from."""
        current = self.model.default_thresholds().given()
        levels = ThresholdTensors(**{name: level.detach() for name, level in current.items()})  # some may be learned
        scores, none = scores_of_ids(self.model), torch.empty(0)
        heads = [clear_of(float(level), none if layer else scores) for layer, level in enumerate(levels.head_top_p)]
        return levels._replace(head_top_p=torch.tensor(heads))


def weights_of(model: Transformer) -> dict[str, Array]:
    """Return every parameter that the graph holds, tied ones once, and the buffers that it holds.

    These are windows that controllers have set, biases of selection, and fixed decays of recurrent mixers. Levels,
    learned or controlled, are left out: they are numbers in the manifest and inputs of the graph.
    """
    return {name: value.numpy() for name, value in _tensors_of_graph(model).items()}


def _tensors_of_graph(model: Transformer) -> dict[str, Tensor]:
    levels, buffers = ".level_logit", (".window_controller.window", ".selection_bias", ".mixer.decay")
    tensors = {name: value.detach() for name, value in model.named_parameters() if not name.endswith(levels)}
    return tensors | {name: value for name, value in model.named_buffers() if name.endswith(buffers)}


def stored_lazily(tensor: Tensor) -> LazyArray:
    """Return a tensor, which may be mapped from a file, as an array that is widened to float32 when it is read."""
    if tensor.dtype == torch.bfloat16:
        return LazyArray.of(tensor.view(torch.uint16).numpy(), from_bfloat16)
    return LazyArray.of(tensor.numpy(), lambda stored: np.asarray(stored, np.float32))


def scores_of_ids(model: Transformer) -> Tensor:
    """Return all scores that the heads of the first layer can have, as its level sees them, sorted (n,).

    They are finite in number: before the first attention a router sees nothing but the id of the token. With learned
    positions it sees the position too; then none are returned, nor where the first layer has a recurrent mixer.
    """
    block = model.blocks()[0]
    router = None if block.attention is None else block.attention.head_router
    if router is None or model.learned_positions is not None:
        return torch.empty(0)
    with torch.no_grad():
        embedded = model.embed(torch.arange(model.config.vocab_size)[:, None]).flatten(0, 1)  # (V, D)
        routes = router(block.attention_norm(embedded), torch.ones(()))
    moved = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
    return moved.flatten().sort().values


def clear_of(level: float, scores: Tensor) -> float:
    """Return a slightly higher level of heads that none of `scores` (n,) is close to; 1 stays 1.

    All occurrences of a frequent token have the same score in the first layer, and a quantile of the scores is often
    exactly that score. As a level it would leave the token undecided: one in twenty tokens was a near tie.
    """
    if level >= 1:
        return level  # every head
    candidates = [min(level + TIE_DISTANCE * (1 + step / 4), 1 - 2**-20) for step in range(80)]
    free = (each for each in candidates if not len(scores) or (scores - each).abs().min() >= TIE_DISTANCE / 2)
    return next(free, candidates[0])


def read(path: Path, task: str | None = None) -> Source:
    """Load the checkpoint at `path`, or the newest undamaged one of the run there.

    Args:
        path: The checkpoint or the run.
        task: The task whose gates the model gets, if it has gates per task.

    Raises:
        UserError: A file of the run is missing or damaged, the run diverged, or `task` does not fit the model.
    """
    checkpoint = with_gates_of(load_checkpoint(path), task)
    config = checkpoint.config.model
    model = load(config, checkpoint.model_state)
    tokenizer_json = _text(checkpoint.run / TOKENIZER)
    tokenizer = _tokenizer(tokenizer_json, checkpoint.run / TOKENIZER, config.vocab_size)
    template = checkpoint.run / CHAT_TEMPLATE
    generation = _generation(checkpoint.run, tokenizer)
    source = Source(
        checkpoint,
        model,
        tokenizer_json,
        tokenizer,
        _text(template) if template.exists() else None,
        generation,
        {name: _text(checkpoint.run / file) for name, file in generation.templates.items()},
        _text(checkpoint.run / HELDOUT),
    )
    if source.heldout_ids(2).shape[1] < 2:
        raise UserError(
            f"{checkpoint.run / HELDOUT} has fewer than the 2 tokens that the check of an export needs; restore it or "
            "train again"
        )
    require_finite(source)
    _calibrate_new(source)
    return source


@torch.no_grad()
def require_finite(source: Source) -> None:
    """Refuse the model of a run that diverged.

    Raises:
        UserError: Its weights, or its logits for held-out text, are not finite.
    """
    checkpoint = source.checkpoint
    problem = None
    if not all_finite(source.parameters()):
        problem = f"the weights of step {checkpoint.step} are not finite"
    else:
        ids = source.heldout_ids(FINITE_TOKENS)
        length = min(source.config.context_length, ids.shape[1])
        windows = ids[:, : ids.shape[1] // length * length].view(-1, length)
        logits = source.model(windows).logits.flatten(0, 1)
        if not all_finite(torch.split(logits, max(1, FINITE_WEIGHTS // logits.shape[1]))):
            problem = f"the weights of step {checkpoint.step} give logits that are not finite"
    if problem is not None:
        raise divergence_error(Run(checkpoint.run), checkpoint.config, problem, checkpoint.step)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which would change the line ends of held-out text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}, a file of the run: {error}; restore it or train again") from error


def _tokenizer(content: str, path: Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is damaged: {error}; restore it or train again") from error
    if vocabulary_size(tokenizer) > vocab_size:
        raise UserError(
            f"{path} has ids up to {vocabulary_size(tokenizer) - 1}, the model's vocabulary holds {vocab_size}; "
            "it is not this run's tokenizer: restore that, or train again"
        )
    return tokenizer


def _generation(run: Path, tokenizer: Tokenizer) -> GenerationSettings:
    path = run / GENERATION
    if not path.exists():
        eos = tokenizer.token_to_id(EOS)
        if eos is None:
            raise UserError(
                f"{run / TOKENIZER} has no token {EOS}, so it is not this run's tokenizer; restore it or train again"
            )
        return GenerationSettings(eos_ids=(eos,))
    settings = GenerationSettings.from_json(_text(path), str(path))
    ids = (*settings.eos_ids, *([] if settings.bos_id is None else [settings.bos_id]))
    unknown = next((number for number in ids if tokenizer.id_to_token(number) is None), None)
    if unknown is not None:
        raise UserError(
            f"{path} names the token {unknown}, which {run / TOKENIZER} does not have: they do not belong together; "
            "import the model again"
        )
    return settings


@torch.no_grad()
def _calibrate_new(source: Source) -> None:
    """Show held-out text to the controllers of a model that was never trained, since they have seen no tokens."""
    tables = [m for name, m in source.model.named_modules() if name.endswith("controller")]
    if tables and all(int(table.num_updates) == 0 for table in tables):
        ids = source.heldout_ids(CALIBRATION_TOKENS)
        length = min(source.config.context_length, ids.shape[1])
        windows = ids[:, : ids.shape[1] // length * length].view(-1, length)
        with last_logits_only(source.model):
            for _ in range(2):  # the second time with the depth thresholds of the first
                source.model.observe(source.model(windows))


@contextmanager
def last_logits_only(model: Transformer) -> Iterator[None]:
    """Compute the logits of the last token alone: those of all take gigabytes with a large vocabulary."""
    hook = model.head.register_forward_pre_hook(lambda _, inputs: inputs[0][:, -1:])
    try:
        yield
    finally:
        hook.remove()


def dial(source: Source) -> DialTable:
    """Return the dial: for each wanted average the threshold of each layer, from the controllers' quantile tables."""
    config = source.config
    experts: list[list[float] | None] = []
    heads: list[list[float] | None] = []
    depth: list[list[float] | None] = []
    chooses = config.heads.routing in ("top_p", "adaptive") and config.least_heads < config.most_heads
    for block in source.model.blocks():
        routed = block.moe is not None and config.ffn.routing in ("top_p", "relu")
        experts.append(_table(block.moe.router.controller.table) if routed and block.moe else None)
        router = block.attention.head_router if chooses and block.attention is not None else None
        if router is None:
            heads.append(None)
        else:  # a level of 1 is every head, whatever the largest score seen
            scores = torch.empty(0) if heads else scores_of_ids(source.model)
            levels = [clear_of(float(level), scores) for level in router.controller.table[:-1]]
            heads.append([*_table(torch.tensor(levels).cummax(0).values), 1.0])
        # the manifest lists the share that runs, the controller the share below the threshold
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
