"""What the manifest of an exported model says about it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import onnx
import torch
from onnx import helper

from ..contract.file_names import target_files
from ..runtime.format.manifest import (
    KV,
    FileInfo,
    Generation,
    Layer,
    Manifest,
    Model,
    Precisions,
    Target,
    Tensor,
    ThresholdLists,
)
from ..runtime.ops.probe import VERSION
from ..train.data.tokenizers.ids import vocabulary_size
from ..train.model.config.model import ModelConfig
from .costs import costs, cuda_costs, packed_costs
from .cuda.attention import kv_of
from .cuda.mechanisms import mechanisms as cuda_mechanisms
from .fused.mechanisms import mechanisms
from .graph.builder import IR_VERSION, OPSET
from .graph.files import WrittenFile
from .graph.proto import Signature
from .model.signature import graph_inputs, graph_outputs
from .source import Source
from .thresholds import dial


def manifest_of(
    source: Source,
    precisions: Precisions,
    targets: Sequence[str],
    kv: KV,
    files: Sequence[WrittenFile],
    *,
    hidden: bool,
) -> Manifest:
    """Return the manifest, without the report of the check.

    Args:
        source: The checkpoint.
        precisions: Precision of each part.
        targets: The targets besides `portable`.
        kv: Precision of the cache in the graph of the target `cpu`.
        files: The files of the model.
        hidden: Whether the graphs also give the hidden states.
    """
    config, thresholds = source.config, source.thresholds()
    return Manifest(
        created_by={
            "adaptive_lm": version("adaptive-lm"),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "opset": OPSET,
            "ir": IR_VERSION,
            "run": source.checkpoint.run.name,
            "step": source.checkpoint.step,
            **_teacher(source),
        },
        model=_model(source, precisions, hidden=hidden),
        chat_template=source.files.chat_template,
        generation=_generation(source),
        inputs=_tensors(graph_inputs(config)),
        outputs=_tensors(graph_outputs(config, hidden=hidden)),
        thresholds=ThresholdLists(**{name: value.tolist() for name, value in thresholds.given().items()}),
        dial=dial(source.model),
        costs=costs(config, precisions),
        targets=_targets(config, precisions, targets, kv),
        files={file.path.name: FileInfo(bytes=file.bytes, sha256=file.sha256) for file in files},
    )


def _targets(config: ModelConfig, precisions: Precisions, targets: Sequence[str], kv: KV) -> dict[str, Target]:
    """Describe the graphs besides the portable one."""
    described: dict[str, Target] = {}
    if "cpu" in targets:
        graph, data = target_files("cpu")
        described["cpu"] = Target(
            graph=graph,
            data=data,
            precisions=precisions,
            kv=kv,
            operators=VERSION,
            costs=packed_costs(config, precisions, kv),
            mechanisms=mechanisms(config),
        )
    if "cuda" in targets:
        graph, data = target_files("cuda")
        described["cuda"] = Target(
            graph=graph,
            data=data,
            precisions=precisions,
            kv=kv_of(precisions),
            operators=0,
            costs=cuda_costs(config, precisions, kv_of(precisions)),
            mechanisms=cuda_mechanisms(config, precisions),
        )
    return described


def _model(source: Source, precisions: Precisions, *, hidden: bool) -> Model:
    config = source.config
    layers = [
        Layer(
            routing="dense" if config.is_dense(i) else config.ffn.routing,
            num_experts=1 if config.is_dense(i) else config.num_experts,
            most_experts=0 if config.is_dense(i) else config.ffn.most_experts or 0,
            zero_experts=[] if config.is_dense(i) else config.ffn.zero_experts.kinds,
            depth_router=config.has_depth_router(i),
            exit=i in config.depth.exit_layers,
            **_mixing(config, i),
        )
        for i in range(config.num_layers)
    ]
    return Model(
        vocab_size=config.vocab_size,
        tokenizer_size=vocabulary_size(source.tokenizer),
        context_length=config.context_length,
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.resolved_head_dim,
        precision=precisions.narrowest,
        precisions=precisions,
        skipped_kv=config.depth.skipped_kv,
        eos_id=source.files.generation.eos_ids[0],
        eos_ids=list(source.files.generation.eos_ids),
        num_experts=config.num_experts,
        layers=layers,
        exit_criterion=config.depth.exit_criterion,
        hidden_states=hidden,
    )


def _mixing(config: ModelConfig, layer: int) -> dict[str, Any]:
    """Return the fields of a layer that describe its mixer."""
    if not config.attends(layer):
        return {
            "mixer": config.mixer_of(layer),
            "states": {name: list(shape) for name, shape in config.state_shapes(layer).items()},
            "positions": config.positions_of(layer) if config.mixer_of(layer) == "retnet" else "none",
        }
    return {
        "positions": config.positions_of(layer),
        "window": config.window_of(layer),
        "head_routing": config.heads.routing,
        "shared_heads": config.heads.shared_heads,
        "least_heads": config.least_heads,
        "most_heads": config.most_heads,
    }


def _teacher(source: Source) -> dict[str, str]:
    """Name the model that the run learned from, where there was one."""
    section = source.checkpoint.config.distillation
    if section is None:
        return {}
    digest = "" if section.teacher.sha256 is None else f" ({section.teacher.sha256[:12]})"
    return {"teacher": f"{section.teacher.model} at {section.teacher.checkpoint}{digest}"}


def _generation(source: Source) -> Generation:
    settings = source.files.generation
    return Generation(
        dialect=settings.dialect,
        bos_id=settings.bos_id,
        add_bos=settings.add_bos,
        special_tokens=dict(settings.special_tokens),
        sampling=dict(settings.sampling),
        stop=list(settings.stop),
        tools=settings.tools,
        templates=source.files.templates,
    )


def _tensors(signature: Signature) -> dict[str, Tensor]:
    return {
        name: Tensor(dtype=helper.tensor_dtype_to_np_dtype(dtype).name, shape=shape)
        for name, (dtype, shape) in signature.items()
    }
