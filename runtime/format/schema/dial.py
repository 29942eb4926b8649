"""The section `dial`: the thresholds of each layer for a share of the compute, as training left them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from .part import Part, Share


class ThresholdLists(Part):
    """One threshold per layer: those that the model was trained with, or those of a point of the curve."""

    router_top_p: list[Share]
    depth_threshold: list[Share]
    exit_threshold: list[Share]
    head_top_p: list[Share] = Field(default_factory=list)
    """Empty stands for 1 in every layer."""
    router_ratio: list[Share] = Field(default_factory=list)
    """Least score of an expert, relative to that of the token's first. Empty stands for 0 in every layer."""


class DialTarget(Part):
    """The averages that training aimed at."""

    experts_per_token: Annotated[float, Field(ge=0)] | None = None
    layers_share: Share | None = None
    heads_per_token: Annotated[float, Field(ge=0)] | None = None


class DialTable(Part):
    """For each share of `grid`, the threshold of each layer; None where a layer has no such choice."""

    grid: list[Share]
    router_top_p: list[list[Share] | None]
    depth_threshold: list[list[Share] | None]
    target: DialTarget
    head_top_p: list[list[Share] | None] = Field(default_factory=list)
    """At share s of the grid, the threshold at which fewest + s * (most - fewest) heads run on average. Empty: no table
    in any layer."""

    @model_validator(mode="after")
    def _tables_fit_the_grid(self) -> Self:
        if len(self.grid) < 2 or sorted(set(self.grid)) != self.grid:
            raise ValueError("grid must rise strictly and hold at least two values")
        for name in ("router_top_p", "depth_threshold", "head_top_p"):
            for index, table in enumerate(getattr(self, name)):
                if table is not None and len(table) != len(self.grid):
                    raise ValueError(f"{name}[{index}] has {len(table)} values for a grid of {len(self.grid)}")
        return self
