"""The thresholds of one run: what the graph compares its routers' scores with, layer by layer."""

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ..format import schema

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Thresholds:
    """Each (L,) float32."""

    router_top_p: Floats
    depth_threshold: Floats
    exit_threshold: Floats
    head_top_p: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # empty: 1 in every layer

    def __post_init__(self) -> None:
        if not len(self.head_top_p):
            object.__setattr__(self, "head_top_p", np.ones_like(self.router_top_p))

    @classmethod
    def of(cls, own: schema.ThresholdLists) -> "Thresholds":
        """Those that a manifest holds; the arrays are new ones."""
        return cls(**{one.name: np.array(getattr(own, one.name), np.float32) for one in fields(cls)})

    @classmethod
    def everything(cls, num_layers: int) -> "Thresholds":
        """Every expert, head and layer, and no token leaves early."""
        one = np.ones(num_layers, np.float32)
        return cls(one, np.zeros_like(one), one.copy(), one.copy())

    def as_lists(self) -> dict[str, list[float]]:
        """For JSON: of each the shortest decimal that reads back as the same float32 (a level near 1 is not 1)."""
        return {one.name: [float(str(value)) for value in getattr(self, one.name)] for one in fields(self)}
