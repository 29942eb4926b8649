"""The torch model that judges a graph, with its own weights or with those that the graph multiplies by."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...runtime.format.manifest import Precision, Precisions
from ...runtime.ops.layout import rounded
from ...train.model import ThresholdTensors, Transformer
from ..graph.builder import Array
from ..graph.lazy_array import steps
from ..graph.weights import FP32, is_matrix, part_of, quantize_columns
from ..source import Source
from ..streaming import Rounding, copy_with_rounding, is_streamed
from .passes import Pass, torch_pass
from .scratch import Scratch

WINDOW = 256
"""Tokens of one prompt that is compared with torch."""
TOKENS = 1024
"""Tokens compared with torch in all, at each set of thresholds."""


def points(source: Source) -> dict[str, ThresholdTensors]:
    """Return the thresholds to compare at: the trained ones, everything on, and low compute."""
    trained = source.thresholds()
    ones, zeros = torch.ones_like(trained.router_top_p), torch.zeros_like(trained.router_top_p)
    thresholds = {"trained": trained, "everything": ThresholdTensors(ones, zeros, ones, ones)}
    config = source.config
    if config.adapts_depth or config.ffn.routing in ("top_p", "relu") or config.heads.routing in ("top_p", "adaptive"):
        depth = (trained.depth_threshold + 0.1).clamp(max=1) if config.depth.layers_share < 1 else zeros
        ratio = 0.2 * ones if config.dials_ratio else None
        thresholds["little"] = ThresholdTensors(
            trained.router_top_p / 2, depth, 0.5 * ones, trained.head_top_p / 2, ratio
        )
    return thresholds


class Judge:
    """Passes of torch over held-out text, each computed once for all the graphs that are compared with it."""

    def __init__(self, source: Source, scales: Mapping[str, Array] | None = None, scratch: Path | None = None) -> None:
        """Take over a checkpoint.

        Args:
            source: The checkpoint.
            scales: Factors of the scales of blocks by matrix, from a calibration.
            scratch: The folder whose disk holds large results; None is that of temporary files.
        """
        self.source = source
        self.scales = scales or {}
        self._scratch = Scratch(scratch)
        self.points = points(source)
        self.windows = list(source.heldout_windows(TOKENS, WINDOW)[:, None])
        """Prompts (1, T) of the held-out text."""
        self._models: dict[tuple[str, Precisions], Transformer] = {}
        self._passes: dict[tuple[str, Precisions, str], list[Pass]] = {}

    def model(self, target: str, precisions: Precisions) -> Transformer:
        """Return the torch model with the weights that the graph of `target` multiplies by."""
        if precisions == FP32:
            return self.source.model
        key = _key(target, precisions)
        if key not in self._models:
            model, tensors = self.source.model, self.source.checkpoint.model_state
            if is_streamed(model):
                rounding = rounding_of(target, precisions, self.scales)
                self._models[key] = copy_with_rounding(model, tensors, rounding)
            else:
                self._models[key] = rounded_model(model, target, precisions, self.scales)
        return self._models[key]

    def passes(self, target: str, precisions: Precisions, name: str) -> list[Pass]:
        """Return the pass of each window at the thresholds `name`."""
        key = (*_key(target, precisions), name)
        if key not in self._passes:
            model = self.model(target, precisions)
            passes: Iterable[Pass]
            if is_streamed(model):  # all windows at once, since a pass reads the whole checkpoint
                joined, length = torch_pass(model, torch.cat(self.windows), self.points[name]), self.windows[0].shape[1]
                passes = (joined.tokens(i * length, (i + 1) * length) for i in range(len(self.windows)))
            else:
                passes = (torch_pass(model, window, self.points[name]) for window in self.windows)
            self._passes[key] = [self.keep(one) for one in passes]
        return self._passes[key]

    def keep(self, one: Pass) -> Pass:
        """Return a pass whose logits and hidden states, where they are large, are on the disk."""
        return replace(one, logits=self._scratch.keep(one.logits), hidden=self._scratch.keep(one.hidden))

    def num_bytes(self) -> int:
        """Return the bytes of text that the windows code after their first tokens."""
        return sum(len(self.source.tokenizer.decode(w[0, 1:].tolist()).encode()) for w in self.windows)


def _key(target: str, precisions: Precisions) -> tuple[str, Precisions]:
    """Return what decides the rounded weights: bf16 and fp16 are the same in every graph, int8 and int4 are not."""
    return (target if precisions.quantised else "", precisions)


@torch.no_grad()
def rounded_model(
    model: Transformer, target: str, precisions: Precisions, scales: Mapping[str, Array] | None = None
) -> Transformer:
    """Return a copy of `model` with its matrices rounded as the graph of `target` holds them."""
    other, rounding = copy.deepcopy(model), rounding_of(target, precisions, scales)
    for name, parameter in other.named_parameters():
        if is_matrix(name, parameter.ndim):
            matrix: Tensor = parameter if parameter.ndim == 2 else parameter.mT  # (..., O, I)
            matrix.copy_(torch.from_numpy(rounding(name, matrix.numpy(), slice(None))))
    return other


def rounding_of(target: str, precisions: Precisions, scales: Mapping[str, Array] | None = None) -> Rounding:
    """Return the function that rounds rows of a matrix as the graph of `target` holds them, a few at a time."""

    def rounding(name: str, matrix: Array, at: slice | Array) -> Array:
        precision: Precision = getattr(precisions, part_of(name))
        scale = (scales or {}).get(name)
        own = None if scale is None else scale[at]
        result = np.empty(matrix.shape, np.float32)
        for part in steps(matrix.shape, np.float32):
            result[part] = rounded_matrix(matrix[part], target, precision, None if own is None else own[part])
        return result

    return rounding


def rounded_matrix(matrix: Array, target: str, precision: Precision, scales: Array | None = None) -> Array:
    """Return a matrix (..., O, I) as the graph of `target` holds it.

    The portable graph has one scale per output in int8, and stores int4 in such an int8.
    """
    if target != "portable" or precision not in ("int8", "int4"):
        return rounded(matrix, precision, scales)
    matrix = rounded(matrix, "int4", scales) if precision == "int4" else matrix
    codes, scale = quantize_columns(matrix.swapaxes(-1, -2))
    return np.ascontiguousarray((codes * scale[..., None, :]).swapaxes(-1, -2))
