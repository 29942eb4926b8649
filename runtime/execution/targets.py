"""Choose the graph of a model that this machine runs: that of our operators where they work, else the portable one."""

from dataclasses import dataclass, replace
from typing import Literal

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import GRAPH, WEIGHTS
from ..format.manifest import KV, Costs, Manifest
from ..ops.library import Library, NoLibraryError, load_library
from ..ops.probe import VERSION

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


def choose_target(
    manifest: Manifest, wanted: str, device: Literal["cpu", "cuda"], no_cuda: str | None = None
) -> ChosenTarget:
    """Choose a target.

    Args:
        manifest: The model.
        wanted: "auto", "portable", "cpu" or "cuda".
        device: The device that the model runs on.
        no_cuda: Why CUDA was not chosen as the device, where it was looked for.

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
            return replace(portable, note=_no_cuda_note(manifest, no_cuda))
        there = ", ".join(["portable", *manifest.targets])
        raise UserError(f"this model has no graph for the target {name}, only {there}; make one with: "
                        f"adaptive export --target {name}")  # fmt: skip
    if name == "cuda" and no_cuda is not None:
        raise UserError(
            f"CUDA does not load here: {no_cuda}; use --target portable, or --device cpu to run this graph on the CPU"
        )
    if name == "cpu" != device:
        raise UserError(f"the target {name} runs on the device {name}, found {device}; use --device {name}")
    library = None
    if name == "cpu":
        try:
            library = _library(target.operators)
        except NoLibraryError as reason:
            if wanted == "cpu":
                raise UserError(f"our operators cannot be used here: {reason}; use --target portable") from reason
            return replace(portable, note=f"running the portable graph: {reason}")
    note = _no_cuda_note(manifest, no_cuda) if wanted == "auto" else None
    return ChosenTarget(name, target.graph, target.data, target.costs, target.kv, library, note)


def _no_cuda_note(manifest: Manifest, no_cuda: str | None) -> str | None:
    """Say why the graph for CUDA does not run, where the model has one."""
    return f"not running on CUDA: {no_cuda}" if no_cuda and "cuda" in manifest.targets else None


def _library(version: int) -> Library:
    if version != VERSION:
        raise NoLibraryError(
            f"the model needs operators of version {version}, this program has {VERSION}; export it again"
        )
    return load_library()
