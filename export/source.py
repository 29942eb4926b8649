"""The source of an export: a checkpoint, the files of its run, and held-out text to check it with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..contract.errors import UserError
from ..contract.file_names import HELDOUT
from ..runtime.ops.layout import from_bfloat16
from ..train.loop.divergence import all_finite, divergence_error
from ..train.model import ModelConfig, ThresholdTensors, Transformer
from ..train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from ..train.run.files import read_run_file
from ..train.run.folder import Run
from .graph.builder import Array
from .graph.lazy_array import LazyArray
from .run.files import RunFiles, read_files
from .run.task_gates import with_gates_of
from .streaming import load
from .thresholds import trained_thresholds

CALIBRATION_TOKENS = 4096
"""Held-out tokens shown to the controllers of a model that was never trained."""
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
    files: RunFiles
    """Tokenizer, ends of texts and chat templates of the run."""
    heldout: str
    """Text that the model was not trained on."""

    @property
    def config(self) -> ModelConfig:
        """The config of the model."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return self.files.tokenizer

    def heldout_ids(self, limit: int) -> Tensor:
        """Return the first `limit` tokens of the held-out text, (1, limit) or fewer."""
        characters = self.heldout[: 16 * limit]  # more than enough for `limit` tokens of any tokenizer here
        ids = self.tokenizer.encode(characters, add_special_tokens=False).ids[:limit]
        return torch.tensor([ids], dtype=torch.int64)

    def heldout_windows(self, limit: int, longest: int | None = None) -> Tensor:
        """Return the first `limit` tokens of the held-out text in windows of one length, (n, T), without the rest.

        Args:
            limit: Tokens in all.
            longest: Most tokens of a window; None takes the context of the model.
        """
        ids, context = self.heldout_ids(limit), self.config.context_length
        length = min(longest or context, context, ids.shape[1])
        return ids[:, : ids.shape[1] // length * length].view(-1, length)

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
        return trained_thresholds(self.model)


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
    files = read_files(checkpoint.run, config.vocab_size)
    source = Source(checkpoint, model, files, read_run_file(checkpoint.run / HELDOUT))
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
        logits = source.model(source.heldout_windows(FINITE_TOKENS)).logits.flatten(0, 1)
        if not all_finite(torch.split(logits, max(1, FINITE_WEIGHTS // logits.shape[1]))):
            problem = f"the weights of step {checkpoint.step} give logits that are not finite"
    if problem is not None:
        raise divergence_error(Run(checkpoint.run), checkpoint.config, problem, checkpoint.step)


@torch.no_grad()
def _calibrate_new(source: Source) -> None:
    """Show held-out text to the controllers of a model that was never trained, since they have seen no tokens."""
    tables = [m for name, m in source.model.named_modules() if name.endswith("controller")]
    if tables and all(int(table.num_updates) == 0 for table in tables):
        windows = source.heldout_windows(CALIBRATION_TOKENS)
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
