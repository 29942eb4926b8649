"""Choose the graph of a model that this machine runs: that of our operators where they work, else the portable one."""

from dataclasses import dataclass
from typing import Literal

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import GRAPH, WEIGHTS
from ..format.manifest import KV, Costs, Manifest
from ..ops.library import VERSION, Library, NoLibraryError, load_library

TargetName = Literal["auto", "portable", "cpu", "cuda"]


@dataclass(frozen=True)
class ChosenTarget:
    """One of the graphs of a model, and what running it needs."""

    name: Literal["portable", "cpu", "cuda"]
    graph: str
    """Name of the file of the graph."""
    data: str
    """Name of the file of its weights."""
    costs: Costs
    kv: KV = "fp32"
    """Precision of the KV cache."""
    library: Library | None = None
    """The library of the operators that the graph needs."""
    note: str | None = None
    """Why `auto` did not take a faster graph of the model, in one line."""

    @property
    def kernel(self) -> str | None:
        """The instruction set of our operators; None where ONNX Runtime's own are used."""
        return None if self.library is None else self.library.kernel


def choose_target(manifest: Manifest, wanted: str, device: Literal["cpu", "cuda"]) -> ChosenTarget:
    """Choose a target.

    Args:
        manifest: The model.
        wanted: "auto", "portable", "cpu" or "cuda".
        device: The device that the model runs on.

    Raises:
        UserError: The target is not in the model, or cannot run here; the message says why.
        WrongUsageError: There is no such target.
    """
    if wanted not in ("auto", "portable", "cpu", "cuda"):
        raise WrongUsageError(f"found target {wanted!r}, expected auto, portable, cpu or cuda")
    portable = ChosenTarget("portable", GRAPH, WEIGHTS, manifest.costs)
    if wanted == "portable":
        return portable
    name: Literal["cpu", "cuda"] = device if wanted == "auto" else "cpu" if wanted == "cpu" else "cuda"
    target = manifest.targets.get(name)
    if target is None:
        if wanted == "auto":
            return portable
        there = ", ".join(["portable", *manifest.targets])
        raise UserError(f"this model has no graph for the target {name}, only {there}; make one with: "
                        f"adaptive export --target {name}")  # fmt: skip
    if name != device:
        raise UserError(f"the target {name} runs on the device {name}, found {device}; use --device {name}")
    library = None
    if name == "cpu":
        try:
            library = _library(target.operators)
        except NoLibraryError as reason:
            if wanted == "cpu":
                raise UserError(f"our operators cannot be used here: {reason}; use --target portable") from reason
            return ChosenTarget(
                "portable", GRAPH, WEIGHTS, manifest.costs, note=f"running the portable graph: {reason}"
            )
    return ChosenTarget(name, target.graph, target.data, target.costs, target.kv, library)


def _library(version: int) -> Library:
    if version != VERSION:
        raise NoLibraryError(
            f"the model needs operators of version {version}, this program has {VERSION}; export it again"
        )
    return load_library()
