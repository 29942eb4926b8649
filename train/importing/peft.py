"""Adapters in the format of peft: adapter_config.json and adapter_model.safetensors."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contract.file_names import PROVENANCE
from ...contract.files import user_path
from ..model.config.model import ModelConfig
from ..model.hollow import hollow
from ..model.lora import ADAPTER, parts_of
from .errors import ForeignFileError, TensorsError, UnsupportedModelError, listed, short
from .huggingface.paths import read_json
from .huggingface.safetensors_files import SafetensorsSource
from .huggingface.settings import Settings

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model."
FAMILIES = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma", "gemma3_text"),
        *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
    }
)
"""Families whose matrices an import takes as they are. In others they are joined or hold factors of the config."""
UNSUPPORTED: Mapping[str, Any] = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "use_qalora": False,
    "target_parameters": None,
}
"""Settings that change more than the matrices with adapters -> the value that changes nothing."""
LARGEST_CONFIG = 2**20


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of a Hugging Face model, by our names."""

    settings: dict[str, Any]
    """The section `lora` that it needs."""
    tensors: dict[str, Tensor]
    """Matrices A and B by their names in our checkpoints, float32."""


def peft_layers(config: ModelConfig) -> Iterator[tuple[str, str, int]]:
    """Yield the layers that can have adapters: its name in peft, ours, and which part of ours it is."""
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}.", f"layers.{layer}."
        for name, own, part in (("q", "q", 0), ("k", "kv", 0), ("v", "kv", 1), ("o", "o", 0)):
            yield f"{theirs}self_attn.{name}_proj", f"{ours}attention.{own}", part
        if config.is_dense(layer):
            places = (f"{theirs}mlp.", f"{ours}ffn.")
        elif config.ffn.shared_expert_dim:
            places = (f"{theirs}mlp.shared_expert.", f"{ours}moe.shared.")
        else:
            continue
        for name, own, part in (("gate", "gate_up", 0), ("up", "gate_up", 1), ("down", "down", 0)):
            yield f"{places[0]}{name}_proj", f"{places[1]}{own}", part


def require_family(run: Path) -> None:
    """Refuse adapters of a model whose matrices were changed when it was imported.

    Raises:
        UserError: Its family is one of those.
    """
    path = run / PROVENANCE
    if not path.exists():
        return  # trained here
    family = json.loads(path.read_text("utf-8")).get("family")
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"{run} is of the family {short(family)}, whose matrices were joined or scaled when it was imported, so "
            f"adapters of peft do not fit them; expected one of {', '.join(sorted(FAMILIES))}"
        )


def read_peft(folder: str, config: ModelConfig, run: Path) -> PeftAdapter:
    """Read an adapter for the model of a run.

    Args:
        folder: Its folder.
        config: The model.
        run: The folder of the run, whose provenance names the family.

    Raises:
        ForeignFileError: A file is missing, damaged or not what its name says.
        UnsupportedModelError: The adapter changes more than matrices, or the model is of a family without such.
        TensorsError: It is the adapter of another model.
    """
    require_family(run)
    place = user_path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (place / name).is_file():
            raise ForeignFileError(
                f"{place} has no {name}; expected the folder that save_pretrained of peft writes, with safetensors"
            )
    values = read_json(place / CONFIG, LARGEST_CONFIG)
    if not isinstance(values, dict):
        raise ForeignFileError(f"{place / CONFIG} is not a JSON object; save the adapter again")
    settings = Settings(values, str(place / CONFIG))
    _require_supported(values, place / CONFIG)
    rank = settings.integer("r", most=4096)
    alpha = settings.number("lora_alpha")
    if settings.flag("use_rslora"):
        alpha *= math.sqrt(rank)
    tensors, names = _tensors(SafetensorsSource({WEIGHTS: place / WEIGHTS}), config, rank, place / WEIGHTS)
    targets = [name for name, ends in ENDS.items() if any(each.endswith(ends) for each in names)]
    lora = {
        "rank": rank, "alpha": alpha, "dropout": settings.number("lora_dropout", 0.0), "targets": targets,
        "initial": folder,
    }  # fmt: skip
    return PeftAdapter(lora, tensors)


ENDS: Mapping[str, tuple[str, ...]] = {
    "q": ("attention.q",), "kv": ("attention.kv",), "o": ("attention.o",), "ffn": (".gate_up", ".down"),
}  # fmt: skip


def _require_supported(values: Mapping[str, Any], place: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise UnsupportedModelError(f"{place} is of the type {short(values.get('peft_type'))}; expected LORA")
    if values.get("bias", "none") != "none":
        raise UnsupportedModelError(f"{place} has bias {short(values['bias'])}, expected none: biases are not adapted")
    for name, neutral in UNSUPPORTED.items():
        if values.get(name) and values[name] != neutral:
            raise UnsupportedModelError(
                f"{place} has {name} {short(values[name])}, expected {neutral}: merge that adapter with peft "
                "(merge_and_unload) and import the merged model"
            )


def _tensors(
    source: SafetensorsSource, config: ModelConfig, rank: int, place: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return A and B of each of our layers, and the names of these layers."""
    shapes = {name: tuple(value.shape) for name, value in hollow(config).named_parameters()}
    left, found = set(source.names()), {}
    for theirs, ours, part in peft_layers(config):
        a, b = (f"{PREFIX}{theirs}.lora_{kind}.weight" for kind in "AB")
        if a not in left or b not in left:
            continue
        left -= {a, b}
        parts = parts_of(ours)
        outputs, inputs = shapes[f"{ours}.weight"]
        for name, expected in ((a, (rank, inputs)), (b, (outputs // parts, rank))):
            if source.shape(name) != expected:
                raise TensorsError(
                    f"{short(name)} of {place} has the shape {list(source.shape(name))}, the run expects "
                    f"{list(expected)}: it is the adapter of another model; import the model that it was trained for"
                )
        if ours not in found:
            draw = torch.Generator().manual_seed(0)  # a part without an adapter begins as a new one
            bound = inputs**-0.5
            found[ours] = (
                torch.empty(parts, rank, inputs).uniform_(-bound, bound, generator=draw),
                torch.zeros(parts, outputs // parts, rank),
            )
        found[ours][0][part], found[ours][1][part] = source.read(a).float(), source.read(b).float()
    if left or not found:
        what = f"has {listed(sorted(left))}, for which the run has no layer" if left else "holds no adapter"
        raise TensorsError(
            f"{place} {what}: it is the adapter of another model, or adapts experts, embedding or head, which this "
            "program leaves frozen; import the model that it was trained for, or one merged by peft (merge_and_unload)"
        )
    tensors: dict[str, Tensor] = {}
    for name, pair in found.items():
        tensors |= {f"{name}{ADAPTER}{kind}": tensor for kind, tensor in zip("ab", pair, strict=True)}
    return tensors, list(found)
