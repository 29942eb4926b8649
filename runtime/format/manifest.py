"""The manifest of an exported model: its files, the inputs and outputs of the graph, and the cost of each part.

It is written last, so its presence means that the export is complete. It holds the digest of every other file.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ...contract.errors import UserError
from ...contract.file_names import GRAPH, MANIFEST, TOKENIZER, WEIGHTS, target_files
from ...contract.text.compression import refuse_pointer
from .files import check_files, write_output
from .schema.costs import Costs, CostTable, LayerCosts
from .schema.curve import Curve, CurvePoint, ExitAgreement, Milliseconds
from .schema.dial import DialTable, DialTarget, ThresholdLists
from .schema.generation import Generation
from .schema.model import KV, Layer, Mixer, Model, Precision, Precisions
from .schema.part import Part
from .schema.target import Executor, FileInfo, Target, Tensor
from .upgrade import FORMAT_VERSION, upgrade, written_version

__all__ = [
    "KV",
    "CostTable",
    "Costs",
    "Curve",
    "CurvePoint",
    "DialTable",
    "DialTarget",
    "Executor",
    "ExitAgreement",
    "FileInfo",
    "Generation",
    "Layer",
    "LayerCosts",
    "Manifest",
    "Milliseconds",
    "Mixer",
    "Model",
    "Precision",
    "Precisions",
    "Target",
    "Tensor",
    "ThresholdLists",
]

FORMAT = "adaptive-lm"
REQUIRED_FILES = (GRAPH, TOKENIZER)
MAX_BYTES = 64 * 2**20
"""Largest manifest that is read; one with a hundred layers has less than a hundredth of it."""


class Manifest(Part):
    """The contract between export and runtime for one model; `schema` defines the sections."""

    format: Literal["adaptive-lm"] = "adaptive-lm"
    format_version: Literal[3] = 3
    created_by: dict[str, Any]
    """Versions of the libraries that exported the model, its run and step."""
    model: Model
    """Shapes and mechanisms."""
    chat_template: str | None = None
    """Jinja2 template of conversations; None for a model that was not trained on any."""
    generation: Generation = Field(default_factory=Generation)
    """Dialect of the templates, special tokens, and defaults of sampling."""
    inputs: dict[str, Tensor] = Field(default_factory=dict)
    """Inputs of the graph."""
    outputs: dict[str, Tensor] = Field(default_factory=dict)
    """Outputs of the graph."""
    thresholds: ThresholdLists
    """Thresholds that the model was trained with."""
    dial: DialTable
    """Thresholds for an average number of experts, heads or layers."""
    costs: Costs
    """Cost of each part of the model, in the portable graph."""
    targets: dict[str, Target] = Field(default_factory=dict)
    """The graphs other than the portable one, by target; a reader that does not know one ignores it."""
    curve: Curve | None = None
    """Thresholds for a share of the compute; written by `adaptive calibrate`."""
    parity: dict[str, Any] = Field(default_factory=dict)
    """Report of the check at export: how far the graph is from the torch model."""
    files: dict[str, FileInfo]
    """Size and digest of every other file of the model."""

    @field_validator("format_version", mode="before")
    @classmethod
    def _newest(cls, version: object) -> object:
        """Take version 2 as the newest: it describes the same models but those with states."""
        return FORMAT_VERSION if version == 2 else version

    @model_validator(mode="after")
    def _one_entry_per_layer(self) -> Self:
        L = self.model.num_layers
        lists: list[tuple[str, Sequence[Any]]] = [
            ("dial.router_top_p", self.dial.router_top_p),
            ("dial.depth_threshold", self.dial.depth_threshold),
            ("dial.head_top_p", self.dial.head_top_p or [None] * L),
            ("costs.flops.layers", self.costs.flops.layers),
            ("costs.weight_bytes.layers", self.costs.weight_bytes.layers),
        ]
        for name, target in self.targets.items():
            tables = (("flops", target.costs.flops), ("weight_bytes", target.costs.weight_bytes))
            lists += [(f"targets.{name}.costs.{unit}.layers", table.layers) for unit, table in tables]
            if name == "portable" or (target.graph, target.data) != target_files(name):
                raise ValueError(f"targets.{name} is in {target.graph} and {target.data}, which are not its files")
        bos = self.generation.bos_id
        if bos is not None and bos >= self.model.tokenizer_size:
            raise ValueError(f"generation.bos_id {bos} is outside the tokenizer of {self.model.tokenizer_size}")
        points = self.curve.points if self.curve else []
        sets = {"thresholds": self.thresholds} | {
            f"curve.points.{i}.thresholds": point.thresholds for i, point in enumerate(points)
        }
        for where, own in sets.items():
            names = ("router_top_p", "depth_threshold", "exit_threshold")
            lists += [(f"{where}.{name}", getattr(own, name)) for name in names]
            lists.append((f"{where}.head_top_p", own.head_top_p or [1] * L))
            lists.append((f"{where}.router_ratio", own.router_ratio or [0] * L))
        for name, values in lists:
            if len(values) != L:
                raise ValueError(f"{name} has {len(values)} entries for {L} layers")
        return self

    @classmethod
    def read(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> "Manifest":
        """Read the manifest of `folder`, and check the files that it lists.

        A manifest of an older format version is upgraded in memory.

        Args:
            folder: The folder of the exported model.
            verify: Whether to compare the SHA-256 of every file. Without, each must still be a regular file of the
                right size inside the folder. Where the graph stores its weights is checked in both cases.

        Raises:
            UserError: the folder is missing or incomplete; the manifest is damaged or of an unknown version; a file is
                missing, changed, a link, or outside the folder.
        """
        folder = Path(folder)
        try:
            manifest = cls._parse(folder)
            files = {name: (info.bytes, info.sha256) for name, info in manifest.files.items()}
            graphs = {GRAPH: WEIGHTS} | {target.graph: target.data for target in manifest.targets.values()}
            check_files(folder, files, graphs, verify=verify)
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename}: {error.strerror}; make it readable or copy the model"
            ) from error
        return manifest

    @classmethod
    def _parse(cls, folder: Path) -> "Manifest":
        path = folder / MANIFEST
        if not folder.is_dir():
            raise UserError(
                f"no exported model at {folder}: expected a folder with {MANIFEST}; make one with: adaptive export"
            )
        if not path.is_file():
            raise UserError(
                f"{folder} has no {MANIFEST}: the export did not finish, or this is not an exported model; "
                "make one with: adaptive export"
            )
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, a manifest has at most {MAX_BYTES}; export the model again"
            )
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            refuse_pointer(path)
            raise UserError(f"{path} is damaged: {error}; export the model again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            actual = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise UserError(
                f"{path} is not the manifest of an exported model: found format {actual!r}, expected {FORMAT!r}; "
                "give the folder of another model, or make one with: adaptive export"
            )
        content = upgrade(content)
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {content.get('format_version')!r}, this program reads 1 to "
                f"{FORMAT_VERSION}; upgrade this program, or export the model again with it"
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise UserError(f"{path} is damaged: {where}: {first['msg']}{more}; export the model again") from error
        required = (*REQUIRED_FILES, *(target.graph for target in manifest.targets.values()))
        missing = [name for name in required if name not in manifest.files]
        if missing:
            raise UserError(f"{path} lists no {', '.join(missing)}; export the model again")
        return manifest

    @property
    def written_version(self) -> int:
        """The oldest format version that describes the model."""
        least = min(layer.least_experts for layer in self.model.layers)
        return written_version(has_states=self.model.has_states, may_have_no_experts=least == 0)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the manifest whole or not at all, and return its path. Write it last: it marks the model as complete.

        The file says the oldest format version that describes the model, so that older programs read it.

        Raises:
            UserError: the file cannot be written; what was there is untouched.
        """
        content = self.model_dump(mode="json") | {"format_version": self.written_version}
        return write_output(
            Path(folder) / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        )
