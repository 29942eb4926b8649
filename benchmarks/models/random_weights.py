"""Models of random weights from a seed, as runs that `adaptive export` takes.

Routers are drawn so small that the probabilities of the experts are nearly even, while their order differs from token
to token. A level of (k - 1/2) / E then keeps exactly k experts, and the same k as a peer that takes the k best.
"""

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.format.manifest import KV, Precisions
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.model import ThresholdTensors, Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint

Precision = Literal["fp32", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
VOCABULARY = 32_000
CONTEXT = 2_304
"""Longest context that is timed, with room for the decoded tokens."""
ROUTER_STD = 0.002
SEED = 0


class Size(NamedTuple):
    """The shape of a model."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    """Hidden width of the dense FFN, or of one expert."""
    experts: int = 1
    depth_routers: bool = False
    """Whether layers can be skipped."""

    @property
    def tied(self) -> bool:
        """Whether the output head shares the weights of the embedding; in the dense models, as in those of peers."""
        return self.experts == 1

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    def weights(self, experts: int | None = None) -> int:
        """Count the weights of all matrices; with `experts` those that a token multiplies, so without the embedding."""
        attention = 2 * self.dim * (self.heads + self.kv_heads) * self.head_dim
        expert = 3 * self.dim * self.hidden
        router = self.dim * self.experts if self.experts > 1 else 0
        table = VOCABULARY * self.dim
        tables = table if experts is not None or self.tied else 2 * table
        return self.layers * (attention + router + (experts or self.experts) * expert) + tables


MOE = Size(512, 8, 8, 4, 1024, experts=8)
SIZES = {
    "dense-15m": Size(288, 6, 6, 6, 768),
    "dense-57m": Size(512, 12, 8, 8, 1536),
    "dense-110m": Size(768, 12, 12, 12, 2048),
    "moe-57m": MOE,
}
SKIPPING = {"moe-57m": MOE._replace(depth_routers=True)}
"""For each model whose layers are also skipped, the same with depth routers."""
DEFAULT_EXPERTS = 2


def level_of(experts: int, size: Size) -> float:
    """Return the router_top_p that keeps exactly this number of experts."""
    return 1.0 if experts == size.experts else (experts - 0.5) / size.experts


def thresholds_of(size: Size, experts: int, skipped: int = 0) -> Thresholds:
    """Return thresholds that keep exactly this number of experts per layer and skip this number of layers.

    The first and the last layer always run; those skipped are spread over the others.
    """
    everything = Thresholds.everything(size.layers)
    depth = everything.depth_threshold.copy()
    depth[np.linspace(1, size.layers - 2, skipped).round().astype(int)] = 1.0
    top_p = np.full(size.layers, level_of(experts, size), np.float32)
    return Thresholds(top_p, depth, everything.exit_threshold, everything.head_top_p)


def for_torch(thresholds: Thresholds) -> ThresholdTensors:
    """Return thresholds as the model in torch takes them."""
    return ThresholdTensors(**{name: torch.from_numpy(values) for name, values in vars(thresholds).items()})


def config_of(size: Size) -> RunConfig:
    """Return the config of a run of this size."""
    ffn: dict[str, Any] = {"routing": "dense", "dim": size.hidden}
    if size.experts > 1:
        ffn = {
            "num_experts": size.experts,
            "expert_dim": size.hidden,
            "experts_per_token": DEFAULT_EXPERTS,
            "controller": "fixed",
            "router_top_p": level_of(DEFAULT_EXPERTS, size),
        }
    model = {
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT,
        "dim": size.dim,
        "num_layers": size.layers,
        "num_heads": size.heads,
        "num_kv_heads": size.kv_heads,
        "tie_embeddings": size.tied,
        "ffn": ffn,
        "depth": {"layers_share": 0.5, "skipped_kv": "none"} if size.depth_routers else {},
    }
    return make_config({"model": model, "tokenizer": {"kind": "bytes"}})


def build(size: Size) -> Transformer:
    """Build the model, with weights large enough that every part of it shows in the logits."""
    torch.manual_seed(SEED)
    model = Transformer(config_of(size).model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.normal_(parameter, mean=1.0, std=0.1)
        elif name.endswith("moe.router.weight"):
            nn.init.normal_(parameter, std=ROUTER_STD)
        elif parameter.ndim > 1:
            # of (outputs, inputs) and (experts, inputs, outputs) the inputs are axis 1
            std = 1.0 if name == "embedding.weight" else parameter.shape[1] ** -0.5
            writes = name.endswith(("down", "down.weight", "o.weight"))
            nn.init.normal_(parameter, std=std * (2 * size.layers) ** -0.5 if writes else std)
    return model


def write_run(folder: Path, size: Size) -> None:
    """Write the run `folder`: a checkpoint at step 0, its config, tokenizer and held-out text."""
    config = config_of(size)
    save_checkpoint(folder / "checkpoints", 0, config, build(size).state_dict(), {"slot": torch.ones(1)}, {})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_str(), encoding="utf-8")
    (folder / "heldout.txt").write_text("The sun rises over the river, and the stone sleeps.\n" * 20, encoding="utf-8")


def export(run: Path, folder: Path, precision: Precision) -> None:
    """Export a run without the check, which takes longer than all the rest.

    The weights are random: what matters is that they are the same as those of the peers, and the benchmark compares its
    logits with torch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # keys and values as llama.cpp and GenAI have them, except in fp32, which is compared with torch closely
    kv: KV = "fp32" if precision == "fp32" else "fp16"
    write_files(read(run), folder, Precisions.of(precision), ("cpu",), kv).write(folder)
