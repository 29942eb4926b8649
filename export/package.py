"""Write the files of an exported model: graphs, weights and tokenizer."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from ..contract.errors import UserError
from ..contract.file_names import TOKENIZER, target_files
from ..contract.files import write_whole
from ..runtime.format.files import digest
from ..runtime.format.manifest import KV, Manifest, Precisions
from .cuda.transformer import build as build_cuda
from .fused.transformer import build as build_fused
from .graph.builder import Array, Later
from .graph.files import WrittenFile, save, size_of
from .graph.weights import FP32
from .manifest import manifest_of
from .model.transformer import build
from .source import Source


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
    files = _write_graphs(source, folder, precisions, targets, kv, scales, log, hidden=hidden)
    tokenizer = folder / TOKENIZER
    write_whole(tokenizer, source.files.tokenizer_json.encode())
    files.append(WrittenFile(tokenizer, tokenizer.stat().st_size, digest(tokenizer)))
    return manifest_of(source, precisions, targets, kv, files, hidden=hidden)


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
