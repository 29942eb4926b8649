"""Mutated safetensors files: headers and bytes changed at random, as a damaged disk or an attacker leaves them.

Fuzz the reader: PYTHONPATH=tests python -m support.mutations 10000
"""

import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.importing.huggingface.safetensors_files import SafetensorsSource

HOSTILE = (0, -1, 1, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, None, "8", [], {}, True)


def original() -> bytes:
    """Return a small valid file of three tensors."""
    tensors = {"a.weight": ("F32", [4, 6]), "b.weight": ("BF16", [3, 5]), "c.bias": ("F16", [7])}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, width = 0, {"F32": 4, "BF16": 2, "F16": 2}
    for name, (dtype, shape) in tensors.items():
        count = 1
        for size in shape:
            count *= size
        end = offset + count * width[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return pack(json.dumps(header).encode(), bytes(range(256))[:offset].ljust(offset, b"\1"))


def pack(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a file; `length` is what its first 8 bytes say of the header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def mutated(seed: int) -> bytes:
    """Return the original with one to three changes."""
    draw = random.Random(seed)
    content = original()
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(CHANGES)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _extend(content: bytes, draw: random.Random) -> bytes:
    return content + bytes(draw.randrange(1, 64))


def _header_length(content: bytes, draw: random.Random) -> bytes:
    near = int.from_bytes(content[:8], "little") + draw.choice((-9, -1, 1, 8, 64))
    length = draw.choice((0, 1, near, 2**20, 10**8, 10**9, 2**40, 2**63, 2**64 - 1)) % 2**64
    return struct.pack("<Q", length) + content[8:]


def _field(content: bytes, draw: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        name = draw.choice([key for key in header if key != "__metadata__"])
        tensor = header[name]
        match draw.randrange(7):
            case 0:
                tensor["data_offsets"][draw.randrange(2)] = draw.choice(HOSTILE)
            case 1:
                tensor["shape"] = [draw.choice(HOSTILE) for _ in range(draw.randrange(5))]
            case 2:
                tensor["dtype"] = draw.choice(["F64", "I8", "F8_E4M3", "Q4_0", "", 3, None, "U64", "BOOL"])
            case 3:
                tensor["data_offsets"] = header[draw.choice([k for k in header if k != "__metadata__"])]["data_offsets"]
            case 4:
                del tensor[draw.choice(list(tensor))]
            case 5:
                header["../" * 5 + "x" * draw.randrange(2000)] = header.pop(name)
            case _:
                header["__metadata__"] = draw.choice([{"format": 3}, [], {"a": {"b": {}}}, "x", {"format": "x" * 9999}])
        encoded = json.dumps(header).encode()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return content
    return pack(encoded, content[8 + size :])


def _repeat(content: bytes, _draw: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    again = header.replace(b'"b.weight"', b'"a.weight"')
    return pack(again, content[8 + size :])


def _deep(content: bytes, draw: random.Random) -> bytes:
    depth = draw.choice((50, 500, 20_000))
    return pack(b'{"__metadata__":' + b"[" * depth + b"]" * depth + b"}", content[-64:])


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _truncate, _extend, _header_length, _field, _field, _field, _repeat, _deep,
)  # fmt: skip


def refusal(path: Path) -> str | None:
    """Read every tensor of a file; return why it was refused, None if it was not. Other errors escape."""
    try:
        source = SafetensorsSource({path.name: path})
        for name in sorted(source.names()):
            tensor = source.read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (source.shape(name), source.dtype(name))
    except UserError as error:
        return str(error)
    return None


def fuzz(count: int, folder: Path, first: int = 0) -> int:
    """Read `count` mutated files; return how many were accepted."""
    path, accepted = folder / "model.safetensors", 0
    for seed in range(first, first + count):
        path.write_bytes(mutated(seed))
        try:
            reason = refusal(path)
            accepted += reason is None
            # one line that names the file, whatever the file holds
            assert reason is None or (str(path) in reason and len(reason) < 1000), reason
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
    return accepted


if __name__ == "__main__":
    wanted, started = int(sys.argv[1]), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        print(f"{wanted} files, {fuzz(wanted, Path(place))} accepted, {time.monotonic() - started:.1f} s")
