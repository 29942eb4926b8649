"""Layers that are run several times with the same weights."""

from pydantic import Field

from ..system.section import Section


class RecursionConfig(Section):
    """The layers that are repeated.

    Each repetition is a layer of its own in `num_layers`, with its own cache and thresholds, and has the weights of the
    layer that it repeats. Where `depth.layers_share` is below 1, a router at the start of each repetition decides which
    tokens run it, among those that ran the one before. Source: Mixture-of-Recursions, Bae et al. 2025 (arXiv
    2507.10524), with routing by token choice and a cache for each repetition. Departs from it: a threshold held by a
    controller in place of a fixed choice, so that the number of repetitions is a coordinate of the dial.
    """

    first: int = Field(1, ge=0)
    """First of the layers that are repeated, counted from 0."""
    layers: int = Field(1, ge=1)
    """Number of layers that are repeated together."""
    times: int = Field(1, ge=1)
    """How often they run at most; 1 repeats nothing."""

    @property
    def repeated(self) -> range:
        """The layers that have the weights of another one: all repetitions but the first run."""
        return range(self.first + self.layers, self.first + self.layers * self.times)

    @property
    def shared(self) -> tuple[str, ...]:
        """How the names of weights begin that several layers read."""
        numbers = range(self.first, self.first + self.layers) if self.times > 1 else ()
        return tuple(f"layers.{layer}." for layer in numbers)

    def source_of(self, layer: int) -> int:
        """Return the layer whose weights a layer has; its own number where it has its own."""
        return self.first + (layer - self.first) % self.layers if layer in self.repeated else layer

    def begins(self, layer: int) -> bool:
        """Return whether a layer is the first of a repetition."""
        return layer in self.repeated and self.source_of(layer) == self.first
