"""Writes a safetensors file, synced and hashed in the same pass; a disk error is raised as an OSError.

The library's own writer is not used because it reports a full disk in its own error type and without a digest.
Format: https://huggingface.co/docs/safetensors/index#format
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is computed when it is read; its shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Returns the tensor, of this shape and dtype."""


def chunks(head: bytes, tensors: Sequence[Tensor | LazyTensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file, one tensor at a time."""
    yield len(head).to_bytes(8, "little")
    yield head
    for each in tensors:
        tensor = each.read() if isinstance(each, LazyTensor) else each
        assert tensor.dtype == each.dtype, "the header was written for another dtype"
        assert tensor.shape == each.shape, "the header was written for another shape"
        yield tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor | LazyTensor]) -> dict[str, Any]:
    """Write name -> tensor (any device) to `path`; return {"bytes": size, "sha256": digest}.

    Lazy tensors are read one after the other, and each is freed before the next.

    Raises:
        OSError: the disk is full or may not be written.
    """
    ordered = sorted(
        tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
    )  # wide first: all stay aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        end = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:
        for data in chunks(head, [tensor for _, tensor in ordered]):
            file.write(data)
            digest.update(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
