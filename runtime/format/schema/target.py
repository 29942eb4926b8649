"""The graphs of a model: their inputs, outputs and files, and the second graph for one kind of machine."""

from typing import Annotated, Literal

from pydantic import Field

from .costs import Costs
from .model import KV, Precisions
from .part import Count, Part

Executor = Literal[
    "our operators",
    "standard operators",
    "contrib operators",
    "contrib or standard operators by layer",
    "contrib operators (all computed)",
    "standard operators (all computed)",
    "standard operators (skipped where no token runs)",
]
"""The operators that run a mechanism: ours, those of the ONNX standard, or those that ONNX Runtime adds to it."""


class Tensor(Part):
    """An input or output of the graph."""

    dtype: str
    shape: list[int | str]
    """A number, or the name of a dimension that varies."""


class Target(Part):
    """A second graph of the same model, for one kind of machine: the same inputs and outputs, other operators."""

    graph: str
    """Name of its file."""
    data: str
    """Name of the file with its weights, the only one that it points to."""
    precisions: Precisions
    kv: KV
    """Precision of the keys and values in its cache."""
    operators: Count
    """Version of our operators that it needs; 0 for none."""
    costs: Costs
    """Costs of its operators; bytes include the padding of packed weights."""
    mechanisms: dict[str, Executor]
    """For each mechanism of the model, which operators run it."""


class FileInfo(Part):
    """Size in bytes and digest of one file."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
