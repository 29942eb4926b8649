"""The figures of one logged step, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..model.output import ModelOutput
from ..optim.layer_scaling import layer_norms, norms_by_layer
from ..parallel.placement import Placement
from ..system.collectives import ranks, total
from .routers import router_figures


class Watch:
    """Collect the figures of a step while it runs; `figures` has them under the names of metrics.jsonl.

    - `grad_norm/LAYER`: norm of the gradient before clipping; a layer is a block, embedding, output head, or the rest.
    - `update_ratio/LAYER`: |step| / |weights|. It needs a copy of the weights during the step.
    - `activation_rms/layers.N`: root mean square of the residual stream after block N.
    - the figures of `router_figures`; `used` counts the tokens of each expert, for `Loads`.
    """

    def __init__(self, placed: Placement, weights: Sequence[tuple[str, nn.Parameter]], rows: int) -> None:
        """Begin to watch a step with `rows` (B) sequences."""
        self.figures: dict[str, float] = {}
        self.used: dict[str, list[float]] = {}
        self.noise: tuple[float, float] | None = None
        """Estimates from this step of |G|^2 of the whole batch and of tr(S), the noise of one sequence. None with a
        single micro-batch on a single rank, and where ranks hold parts of the weights."""
        self._placed, self._weights, self._rows = placed, weights, rows
        self._parts = not any(placed.is_split(weight) for _, weight in weights)
        self._sums: dict[str, Tensor] = {}
        self._used: dict[str, Tensor] = {}
        self._first: tuple[float, float] | None = None

    def saw(self, out: ModelOutput, scored: Tensor, share: Tensor) -> None:
        """Record a micro-batch after its backward pass; `share` () is its share of the scored tokens."""
        if self._first is None and self._parts:  # its gradient, times its share, is all there is yet
            squares = [norm.square() for norm in layer_norms(self._weights).values()]
            (square,) = total(torch.stack(squares).sum())
            self._first = float(share) / ranks(), float(square) / ranks()
        figures, used = router_figures(out, scored)
        for layer, rms in enumerate(out.residual_rms):
            (square,) = total(rms.square())
            figures[f"activation_rms/layers.{layer}"] = (square / ranks()).sqrt()
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * share
        for name, counts in used.items():  # of all ranks and whole numbers, so the same on each
            self._used[name] = self._used.get(name, 0.0) + counts

    def gradients(self) -> None:
        """Measure the gradients, after the last backward pass and before clipping."""
        self.figures |= {name: float(value) for name, value in self._sums.items()}
        self.used = {name: counts.tolist() for name, counts in self._used.items()}
        norms = {layer: float(norm) for layer, norm in layer_norms(self._weights, self._placed.squares).items()}
        self.figures |= {f"grad_norm/{layer}": norm for layer, norm in norms.items()}
        if self._first is not None and self._first[0] < 1:
            share, first = self._first
            whole = sum(norm**2 for norm in norms.values())
            self.noise = noise_of(first / share**2, whole, share * self._rows, self._rows)

    def update(self, step: Callable[[], None]) -> None:
        """Take the step, and measure how far it moves the weights."""
        with torch.no_grad():
            before = [(name, weight, weight.detach().clone()) for name, weight in self._weights]
            step()
            moved = [(name, weight, weight - old) for name, weight, old in before]
            lengths = norms_by_layer(before, self._placed.squares)
            for layer, distance in norms_by_layer(moved, self._placed.squares).items():
                self.figures[f"update_ratio/{layer}"] = float(distance) / max(float(lengths[layer]), 1e-30)

    def agree(self, first: Callable[[Sequence[float]], list[float]]) -> None:
        """Use the figures of the first rank on all ranks, because decisions that follow must be equal."""
        self.figures = dict(zip(self.figures, first(list(self.figures.values())), strict=True))
        if self.noise is not None:
            signal, noise = first(self.noise)
            self.noise = signal, noise


def noise_of(small: float, big: float, small_rows: float, big_rows: float) -> tuple[float, float]:
    """Estimate |G|^2 and tr(S) without bias from the squared gradient norms of a small and a big batch.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1. Their ratio tr(S) / |G|^2 is the simple noise
    scale: the batch at which half of a step's variance is noise. One step gives a poor estimate; see `Noise`.
    """
    if small_rows >= big_rows:
        return big, 0.0
    signal = (big_rows * big - small_rows * small) / (big_rows - small_rows)
    return signal, (small - big) / (1 / small_rows - 1 / big_rows)
