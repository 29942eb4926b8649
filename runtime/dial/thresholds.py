"""The thresholds of one pass: what the graph compares the scores of its routers with, layer by layer."""

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ..format.schema.dial import ThresholdLists

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of every layer, each (L,) float32; see `Dial` for their meaning and range."""

    router_top_p: Floats
    depth_threshold: Floats
    exit_threshold: Floats
    head_top_p: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    """Empty stands for 1 in every layer."""
    router_ratio: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    """Empty stands for 0 in every layer."""

    def __post_init__(self) -> None:
        for name, fill in (("head_top_p", np.ones_like), ("router_ratio", np.zeros_like)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, fill(self.router_top_p))

    @classmethod
    def of(cls, lists: ThresholdLists) -> "Thresholds":
        """Copy the thresholds of a manifest into new arrays."""
        return cls(**{one.name: np.array(getattr(lists, one.name), np.float32) for one in fields(cls)})

    @classmethod
    def everything(cls, num_layers: int) -> "Thresholds":
        """Return thresholds that run every expert, head and layer, and let no token leave early."""
        one = np.ones(num_layers, np.float32)
        return cls(one, np.zeros_like(one), one.copy(), one.copy(), np.zeros_like(one))

    def stacked(self) -> Floats:
        """Copy all thresholds into one array (5, L), in the order of the fields."""
        return np.stack([getattr(self, one.name) for one in fields(self)])

    def as_lists(self) -> dict[str, list[float]]:
        """Return lists for JSON, each number the shortest decimal that reads back as the same float32.

        A `router_ratio` of 0 in every layer is left out, since most models have none.
        """
        names = [one.name for one in fields(self) if one.name != "router_ratio" or self.router_ratio.any()]
        return {name: [float(str(value)) for value in getattr(self, name)] for name in names}
