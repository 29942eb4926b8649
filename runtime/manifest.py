"""The manifest of an exported model: its files, what the graph takes and gives, and what each part of it costs.

It is written last, so its presence means that the export is complete; it holds the digest of every other file.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError
from .files import check_files, write_whole

FORMAT = "adaptive-lm"
FORMAT_VERSION = 1
NAME = "manifest.json"
REQUIRED_FILES = ("model.onnx", "tokenizer.json")
MAX_BYTES = 64 * 2**20  # of the manifest itself; one with a hundred layers has less than a hundredth of it

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """What every section of the manifest is: immutable, and indifferent to fields that a later 1.x writer may add."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Layer(Part):
    routing: Literal["top_p", "top_k", "dense"]
    num_experts: Positive  # 1 where the FFN is dense
    depth_router: bool
    exit: bool


class Model(Part):
    vocab_size: Positive  # rows of the embedding; at least `tokenizer_size`, the rest is padding that is never sampled
    tokenizer_size: Positive
    context_length: Positive
    dim: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    precision: Literal["fp32", "int8"]
    skipped_kv: Literal["none", "project"]
    eos_id: Count
    num_experts: Positive
    layers: list[Layer]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.layers) != self.num_layers:
            raise ValueError(f"{len(self.layers)} layers are described, num_layers is {self.num_layers}")
        if self.tokenizer_size > self.vocab_size:
            raise ValueError(f"tokenizer_size {self.tokenizer_size} is larger than vocab_size {self.vocab_size}")
        if self.eos_id >= self.tokenizer_size:
            raise ValueError(f"eos_id {self.eos_id} is outside the tokenizer of {self.tokenizer_size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if any(layer.num_experts > self.num_experts for layer in self.layers):
            raise ValueError(f"a layer has more experts than num_experts {self.num_experts}")
        return self


class Tensor(Part):
    dtype: str
    shape: list[int | str]


class Thresholds(Part):
    """One threshold per layer: what the model was trained to run with."""

    router_top_p: list[Share]
    depth_threshold: list[Share]
    exit_threshold: list[Share]


class DialTarget(Part):
    experts_per_token: Annotated[float, Field(ge=0)] | None = None
    layers_share: Share | None = None


class DialTable(Part):
    """For each wanted average (`grid`, 0..1), the threshold per layer; None where a layer has no such choice."""

    grid: list[Share]
    router_top_p: list[list[Share] | None]
    depth_threshold: list[list[Share] | None]
    target: DialTarget

    @model_validator(mode="after")
    def _tables_fit_the_grid(self) -> Self:
        if len(self.grid) < 2 or sorted(set(self.grid)) != self.grid:
            raise ValueError("grid must rise strictly and hold at least two values")
        for name in ("router_top_p", "depth_threshold"):
            for index, table in enumerate(getattr(self, name)):
                if table is not None and len(table) != len(self.grid):
                    raise ValueError(f"{name}[{index}] has {len(table)} values for a grid of {len(self.grid)}")
        return self


class LayerCosts(Part):
    """Cost of one token in one layer; FLOPs (1 multiply-add = 2) or bytes read, by the table it stands in."""

    attention: Cost
    attention_per_key: Cost  # times the keys visible to the token
    router: Cost
    expert: Cost  # times the experts used
    shared_expert: Cost
    depth_router: Cost
    exit_check: Cost
    skipped_kv: Cost  # keys and values of a token that skips the layer, under the policy `project`


class CostTable(Part):
    head: Cost
    layers: list[LayerCosts]


class Costs(Part):
    flops: CostTable
    weight_bytes: CostTable


class FileInfo(Part):
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(Part):
    """The contract of one exported model; see the classes above for the meaning of each section."""

    format: Literal["adaptive-lm"] = "adaptive-lm"
    format_version: Literal[1] = 1
    created_by: dict[str, Any]
    model: Model
    chat_template: str | None = None
    inputs: dict[str, Tensor] = Field(default_factory=dict)
    outputs: dict[str, Tensor] = Field(default_factory=dict)
    thresholds: Thresholds
    dial: DialTable
    costs: Costs
    parity: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileInfo]

    @model_validator(mode="after")
    def _one_entry_per_layer(self) -> Self:
        L = self.model.num_layers
        for name, values in (
            ("thresholds.router_top_p", self.thresholds.router_top_p),
            ("thresholds.depth_threshold", self.thresholds.depth_threshold),
            ("thresholds.exit_threshold", self.thresholds.exit_threshold),
            ("dial.router_top_p", self.dial.router_top_p),
            ("dial.depth_threshold", self.dial.depth_threshold),
            ("costs.flops.layers", self.costs.flops.layers),
            ("costs.weight_bytes.layers", self.costs.weight_bytes.layers),
        ):
            if len(values) != L:
                raise ValueError(f"{name} has {len(values)} entries for {L} layers")
        return self

    @classmethod
    def read(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> "Manifest":
        """The manifest of `folder`, after checking the files that it names.

        With `verify`, size and SHA-256 of every file are compared with the manifest; without, only that each is a
        regular file of the right size inside the folder. Where the weights lie is checked in both cases.

        Raises UserError for a folder that is missing or incomplete, a manifest that is damaged or of another version,
        and a file that is missing, changed, a link, or outside the folder.
        """
        folder = Path(folder)
        try:
            manifest = cls._parse(folder)
            files = {name: (info.bytes, info.sha256) for name, info in manifest.files.items()}
            check_files(folder, files, verify=verify)
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename}: {error.strerror}; make it readable or copy the model"
            ) from error
        return manifest

    @classmethod
    def _parse(cls, folder: Path) -> "Manifest":
        path = folder / NAME
        if not folder.is_dir():
            raise UserError(
                f"no exported model at {folder}: expected a folder with {NAME}; make one with: adaptive export --onnx"
            )
        if not path.is_file():
            raise UserError(
                f"{folder} has no {NAME}: the export did not finish, or this is no exported model; "
                "make one with: adaptive export --onnx"
            )
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, a manifest has at most {MAX_BYTES}; export the model again"
            )
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}; export the model again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path} is no manifest of an exported model: found format {found!r}, expected {FORMAT!r}")
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} is of format version {content.get('format_version')!r}, this program reads {FORMAT_VERSION}; "
                "export the model again with this program, or run it with the program that exported it"
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise UserError(f"{path} is damaged: {where}: {first['msg']}{more}; export the model again") from error
        missing = [name for name in REQUIRED_FILES if name not in manifest.files]
        if missing:
            raise UserError(f"{path} lists no {', '.join(missing)}; export the model again")
        return manifest

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the manifest whole or not at all; call it last, its presence says that the model is complete."""
        content = self.model_dump(mode="json")
        return write_whole(
            Path(folder) / NAME, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        )
