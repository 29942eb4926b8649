"""Write the folder of an exported model, completely or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper

from ..contract.errors import UserError
from ..contract.file_names import MANIFEST, TOKENIZER, target_files
from ..contract.files import require_utf8_path, write_whole
from ..runtime.format.files import digest
from ..runtime.format.manifest import (
    FORMAT,
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
from .cuda.transformer import build as build_cuda
from .fused.mechanisms import mechanisms
from .fused.transformer import build as build_fused
from .graph.builder import IR_VERSION, OPSET, Array, Later
from .graph.files import WrittenFile, save, size_of
from .graph.weights import FP32
from .model.signature import Signature, graph_inputs, graph_outputs
from .model.transformer import build
from .source import Source, dial


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` to write into, and move it to `out` at the end.

    After an error the folder is deleted and `out` is as before.

    Raises:
        UserError: `out` is not an exported model, or cannot be written.
    """
    out = out.resolve()  # "." has no name to derive another from, and a link itself must not be replaced
    require_utf8_path(out)
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists() and not _replaceable(out):
        raise UserError(f"{out} exists and is not an exported model, so it was left unchanged; choose another --out")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had the same id
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; nothing was exported. "
            "Free disk space, or choose another --out"
        ) from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replaceable(out: Path) -> bool:
    """Return whether `out` is empty or an exported model; other programs also write a manifest.json."""
    if not out.is_dir() or not (out / MANIFEST).exists():
        return out.is_dir() and not any(out.iterdir())
    try:
        content = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def write_files(
    source: Source,
    folder: Path,
    precisions: Precisions = FP32,
    targets: Sequence[str] = (),
    kv: KV = "fp32",
    scales: Mapping[str, Array] | None = None,
    log: Callable[[str], None] = lambda line: None,
    *,
    hidden: bool = False,
) -> Manifest:
    """Write graphs, weights and tokenizer into `folder`; return the manifest, without the report of the check.

    Args:
        source: The checkpoint.
        folder: An empty folder.
        precisions: Precision of each part.
        targets: The targets besides `portable`, which is always written.
        kv: Precision of the cache in the graph of the target `cpu`.
        scales: Factors of the scales of blocks by matrix, from a calibration.
        log: Called with what is written, and how large it is, before it is.
        hidden: Whether the graphs also give the hidden states, for embeddings.

    Raises:
        UserError: The disk has less room than the model takes.
    """
    config, thresholds = source.config, source.thresholds()
    files = _write_graphs(source, folder, precisions, targets, kv, scales, log, hidden=hidden)
    extra: dict[str, Target] = {}
    if "cpu" in targets:
        graph, data = target_files("cpu")
        extra["cpu"] = Target(
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
        extra["cuda"] = Target(
            graph=graph,
            data=data,
            precisions=precisions,
            kv=kv_of(precisions),
            operators=0,
            costs=cuda_costs(config, precisions, kv_of(precisions)),
            mechanisms=cuda_mechanisms(config, precisions),
        )
    tokenizer = folder / TOKENIZER
    write_whole(tokenizer, source.tokenizer_json.encode())
    files.append(WrittenFile(tokenizer, tokenizer.stat().st_size, digest(tokenizer)))
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
        chat_template=source.chat_template,
        generation=_generation(source),
        inputs=_tensors(graph_inputs(config)),
        outputs=_tensors(graph_outputs(config, hidden=hidden)),
        thresholds=ThresholdLists(**{name: value.tolist() for name, value in thresholds.given().items()}),
        dial=dial(source),
        costs=costs(config, precisions),
        targets=extra,
        files={file.path.name: FileInfo(bytes=file.bytes, sha256=file.sha256) for file in files},
    )


def _write_graphs(
    source: Source,
    folder: Path,
    precisions: Precisions,
    targets: Sequence[str],
    kv: KV,
    scales: Mapping[str, Array] | None,
    log: Callable[[str], None],
    *,
    hidden: bool,
) -> list[WrittenFile]:
    """Write the graph and the weights of each target, one target after the other.

    The graphs come first, without their weights: so the sizes are known before anything is written.

    Raises:
        UserError: The disk has less room than the model takes.
    """
    config, state = source.config, source.weights()
    later: dict[str, Later] = {name: {} for name in ("portable", "cpu", "cuda")}
    graphs = {"portable": build(config, state, precisions, None, scales, later["portable"], hidden=hidden)}
    if "cpu" in targets:
        graphs["cpu"] = build_fused(config, state, precisions, kv, scales, later["cpu"], hidden=hidden)
    if "cuda" in targets:
        graphs["cuda"] = build_cuda(config, state, precisions, later["cuda"], hidden=hidden)
    sizes = {name: size_of(proto, later[name]) for name, proto in graphs.items()}
    parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    log(f"writing {parts} to {folder.parent}")
    require_room(folder, sum(sizes.values()), parts)
    files: list[WrittenFile] = []
    for name, proto in graphs.items():
        graph, data = target_files(name)
        files += save(proto, folder / graph, folder / data, later[name])
        onnx.checker.check_model(folder / graph)
    return files


def require_room(folder: Path, size: int, parts: str) -> None:
    """Refuse to begin where the model does not fit on the disk.

    Raises:
        UserError: The disk has less room than `size` bytes, those of `parts`.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"the exported model takes {size / 2**20:.1f} MiB ({parts}), the disk of {folder.parent} has "
            f"{free / 2**20:.1f} MiB; nothing was exported. Free disk space, choose another --out, or make it smaller: "
            "--quantize int8"
        )


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
        eos_id=source.generation.eos_ids[0],
        eos_ids=list(source.generation.eos_ids),
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
    settings = source.generation
    return Generation(
        dialect=settings.dialect,
        bos_id=settings.bos_id,
        add_bos=settings.add_bos,
        special_tokens=dict(settings.special_tokens),
        sampling=dict(settings.sampling),
        stop=list(settings.stop),
        tools=settings.tools,
        templates=source.templates,
    )


def _tensors(signature: Signature) -> dict[str, Tensor]:
    return {
        name: Tensor(dtype=helper.tensor_dtype_to_np_dtype(dtype).name, shape=shape)
        for name, (dtype, shape) in signature.items()
    }
