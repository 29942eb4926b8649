"""Scales of int8 and int4 that are chosen by the error of a matrix's outputs on a text.

N outputs, K inputs of a matrix, E experts, T tokens. The error of a block is the sum of (w - rounded w)^2 mean(x^2)
over its weights, with x the inputs of the matrix on the text. An expert that the text does not visit would have no
inputs, so each is also shown an equal share of all tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract.errors import UserError
from ..contract.text.file import read_text
from ..runtime.format.manifest import Precisions
from ..runtime.ops.layout import BLOCK, Precision, dequantize, quantize
from ..train.model import Transformer
from ..train.model.experts.form import ExpertForm
from ..train.model.experts.moe import MoE
from ..train.model.linear import Linear
from .graph.builder import Array
from .graph.lazy_array import LazyArray, steps
from .graph.weights import is_matrix, part_of
from .source import Source, last_logits_only

TOKENS = 16_384
"""Most tokens of the text that are read."""
FACTORS = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8)
"""Factors of the step that the range of a block gives; below 1 its largest weights are clipped, the others finer."""


@dataclass(frozen=True)
class Calibration:
    """The scales of every quantised matrix, and how they were found."""

    scales: dict[str, Array]
    """By the name of the matrix: factors (N, blocks) or (E, N, blocks), as `layout.quantize` takes them."""
    text: str
    """Name of the text."""
    tokens: int
    """Tokens that were read."""
    unvisited: dict[int, list[int]]
    """For each layer that has some, the experts that no token of the text chose."""
    error_share: float
    """Error of all matrices with these scales, over the error with those of the ranges."""

    def report(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "error_share": self.error_share,
            "unvisited_experts": {str(layer): experts for layer, experts in self.unvisited.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines for the user."""
        yield (
            f"calibrated {len(self.scales)} matrices on {self.tokens} tokens of {self.text}: "
            f"{self.error_share:.1%} of the error of plain rounding remains"
        )
        for layer, experts in self.unvisited.items():
            yield (
                f"the text never visits expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))} of layer "
                f"{layer}; calibrated on other experts' tokens"
            )


class Powers:
    """Mean squares of the inputs of each matrix."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}

    def add(self, name: str, x: Tensor) -> None:
        """Add inputs (..., K) of a matrix."""
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        self.add_to(name, None, rows)

    def add_to(self, name: str, expert: tuple[int, int] | None, rows: Tensor) -> None:
        """Add inputs (T, K) of a matrix, or of one expert (its number, E)."""
        shape = (rows.shape[-1],) if expert is None else (expert[1], rows.shape[-1])
        sums = self._sums.setdefault(name, np.zeros(shape))
        counts = self._counts.setdefault(name, np.zeros(shape[:-1]))
        at = () if expert is None else expert[0]
        sums[at] += rows.square().sum(0).numpy()
        counts[at] += len(rows)

    def of(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the mean squares (K,) or (E, K); ones for a matrix that multiplies nothing, as the embedding."""
        if name not in self._sums:
            return np.ones((*shape[:-2], shape[-1]))
        return np.asarray(self._sums[name] / np.maximum(self._counts[name], 1)[..., None])


def calibrate(source: Source, text: Path, precisions: Precisions) -> Calibration:
    """Choose the scales of every matrix in int8 or int4 by the text.

    Raises:
        UserError: The text cannot be read, or has fewer than two tokens.
    """
    ids = source.tokenizer.encode(read_text(text), add_special_tokens=False).ids[:TOKENS]
    if len(ids) < 2:
        raise UserError(f"{text} has {len(ids)} tokens, expected at least 2; give another --calibrate-text FILE")
    powers = Powers()
    visits = record(source.model, torch.tensor([ids]), powers, source.config.context_length)
    scales: dict[str, Array] = {}
    errors = np.zeros(2)
    for name, value in source.weights().items():
        precision: Precision = getattr(precisions, part_of(name))
        if not is_matrix(name, value.ndim) or precision not in ("int8", "int4"):
            continue
        matrix = value if value.ndim == 2 else value.swapaxes(1, 2)  # (..., N, K)
        power = powers.of(name, matrix.shape)
        if matrix.ndim == 2:
            scales[name], own = search(matrix, power, precision)
        else:
            each = [search(matrix[e], its, precision) for e, its in enumerate(power)]
            scales[name], own = np.stack([one for one, _ in each]), np.sum([error for _, error in each], 0)
        errors += own
    unvisited = {layer: np.flatnonzero(number == 0).tolist() for layer, number in visits.items() if (number == 0).any()}
    return Calibration(scales, text.name, len(ids), unvisited, float(errors[0] / max(errors[1], 1e-300)))


def search(matrix: Array | LazyArray, power: Array, precision: Precision) -> tuple[Array, Array]:
    """Choose the factor of each block of a matrix (N, K) by the mean squares (K,) of its inputs.

    Returns:
        Factors (N, blocks), and the error with them and with a factor of 1, (2,).
    """
    missing = -matrix.shape[1] % BLOCK
    weight = np.pad(np.asarray(power, np.float64), (0, missing))
    factors, lowest, first = [], [], []
    for at in steps(matrix.shape, np.float32):
        whole = np.pad(np.asarray(matrix[at], np.float32), ((0, 0), (0, missing)))
        blocks = whole.shape[1] // BLOCK
        errors = np.empty((len(FACTORS), len(whole), blocks))
        for i, factor in enumerate(FACTORS):
            own = dequantize(quantize(whole, precision, np.full((len(whole), blocks), factor, np.float32)))
            errors[i] = (np.square(own.astype(np.float64) - whole) * weight).reshape(len(whole), blocks, BLOCK).sum(-1)
        best = errors.argmin(0)  # (n, blocks); the first, 1, where several are equal
        factors.append(np.asarray(FACTORS, np.float32)[best])
        lowest.append(errors.min(0))
        first.append(errors[0])
    return np.concatenate(factors), np.array([np.concatenate(lowest).sum(), np.concatenate(first).sum()])


@torch.no_grad()
def record(model: Transformer, ids: Tensor, powers: Powers, context: int) -> dict[int, Array]:
    """Read ids (1, T) with the model; add the inputs of its matrices to `powers`, and count visits of experts (E,)."""
    visits: dict[int, Array] = {}
    with recording(model, powers, visits), last_logits_only(model):
        for begin in range(0, ids.shape[1], context):
            model(ids[:, begin : begin + context])
    return visits


@contextmanager
def recording(model: Transformer, powers: Powers, visits: dict[int, Array]) -> Iterator[None]:
    """Watch the inputs of every matrix while the block runs."""
    tied = {"head.weight": "embedding.weight"} if model.config.tie_embeddings else {}
    undo: list[Callable[[], object]] = []

    def watch(module: Linear, name: str) -> None:
        hook = module.register_forward_pre_hook(lambda _, inputs: powers.add(tied.get(name, name), inputs[0]))
        undo.append(hook.remove)

    def watch_experts(module: MoE, name: str) -> None:
        true, layer = module.run_experts, int(name.split(".")[1])

        def run(
            x: Tensor, weights: Tensor, selected: Tensor, stack: Tensor, down: Tensor, onednn: bool, form: ExpertForm
        ) -> Tensor:
            number = selected.sum(0).numpy()
            visits[layer] = visits.get(layer, 0) + number
            for e in range(len(stack)):
                shown = selected[:, e].clone()
                shown[e % len(x) :: len(stack)] = True
                rows = x[shown]
                powers.add_to(f"{name}.{module.input}", (e, len(stack)), rows.double())
                bias = None if form.gate_up_bias is None else form.gate_up_bias[e]
                powers.add_to(f"{name}.down", (e, len(stack)), form.inner(rows @ stack[e], bias).double())
            return true(x, weights, selected, stack, down, onednn, form)

        module.run_experts = run
        undo.append(lambda: setattr(module, "run_experts", true))

    for name, module in model.named_modules():
        if isinstance(module, Linear):
            watch(module, f"{name}.weight")
        elif isinstance(module, MoE):
            watch_experts(module, name)
    try:
        yield
    finally:
        for step in undo:
            step()
