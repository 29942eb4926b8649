"""GGUF files: the header, damaged and hostile ones, dequantised tensors, parts."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from support.foreign.gguf_models import write_random

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.importing.gguf.file import CHUNK, GGUFFile, dequantised
from adaptive_lm.train.importing.gguf.header import READABLE
from adaptive_lm.train.importing.gguf.reader import read_gguf

MUTATED = 60


def write(path: Path, fill: Callable[["gguf.GGUFWriter"], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind: Type, rows: int, seed: int = 0) -> np.ndarray:
    """Draw rows of random blocks, with finite scales."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    drawn = np.random.default_rng(seed).integers(0, 256, (rows, 3 * size), dtype=np.uint8)
    halves = drawn.view(np.uint8)
    halves[:, 1::2] &= 0x3F  # the exponent of a number in float16 that may be there stays finite
    return drawn


@pytest.mark.parametrize("kind", sorted(READABLE - {Type.F32, Type.F16, Type.BF16}), ids=lambda kind: kind.name)
def test_every_quantised_type_is_dequantised_as_gguf_does(kind: Type, tmp_path: Path) -> None:
    raw = blocks(kind, 40)
    path = write(tmp_path / "model.gguf", lambda writer: writer.add_tensor("weight", raw, raw_dtype=kind))
    with np.errstate(over="ignore"):
        expected = gguf.dequantize(raw, kind)
    with GGUFFile(path) as file:
        assert file.shape("weight") == expected.shape
        assert file.dtype("weight") == torch.float32
        read = file.read("weight").numpy()
    np.testing.assert_array_equal(read, expected)


def test_the_types_that_are_refused_are_those_that_gguf_cannot_dequantise() -> None:
    def reads(kind: Type) -> bool:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    assert {kind for kind in Type if reads(kind)} == set(READABLE)


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(tmp_path: Path) -> None:
    raw = np.zeros((2, 292), np.uint8)
    path = write(tmp_path / "model.gguf", lambda writer: writer.add_tensor("weight", raw, raw_dtype=Type.Q8_K))
    with pytest.raises(UserError, match=r"tensor weight is stored as Q8_K, .* one of F32, F16, Q4_0"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Type.F32, torch.float32), (Type.F16, torch.float16), (Type.BF16, torch.bfloat16)]
)
def test_plain_numbers_keep_their_precision(kind: Type, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(3, 8).to(dtype)
    raw = values.view(torch.uint8).numpy()
    path = write(tmp_path / "model.gguf", lambda writer: writer.add_tensor("weight", raw, raw_dtype=kind))
    with GGUFFile(path) as file:
        read = file.read("weight")
    assert (read.dtype, read.shape) == (dtype, (3, 8))
    assert torch.equal(read, values)


def test_large_tensors_are_dequantised_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, sizes = blocks(Type.Q4_0, 100), []
    whole = gguf.dequantize

    def watched(data: np.ndarray, kind: Type) -> np.ndarray:
        sizes.append(len(data))
        return np.asarray(whole(data, kind))

    monkeypatch.setattr("adaptive_lm.train.importing.gguf.file.dequantize", watched)
    monkeypatch.setattr("adaptive_lm.train.importing.gguf.file.CHUNK", 96 * 30)
    np.testing.assert_array_equal(
        dequantised(raw.reshape(-1), Type.Q4_0, (4, 25, 96)), whole(raw, Type.Q4_0).reshape(4, 25, 96)
    )
    assert sizes == [30, 30, 30, 10]
    assert CHUNK * 4 <= 2**24


def test_metadata_are_read_as_gguf_reads_them(tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "mixtral")
    reader, metadata = gguf.GGUFReader(path), GGUFFile(path).metadata
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        value, expected = metadata[key], field.contents()
        if isinstance(value, np.ndarray):
            value = value.tolist()
        assert value == pytest.approx(expected) if isinstance(expected, float) else value == expected, key


def test_the_parts_of_a_model_are_read_together(tmp_path: Path) -> None:
    whole = write_random(tmp_path / "whole.gguf", "llama")
    with GGUFFile(whole) as file:
        tensors = {name: file.read(name).numpy() for name in file.names()}
    names = sorted(tensors)
    for number in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-{number:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(names))
        for name in names[number - 1 :: 2]:
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with GGUFFile(tmp_path / "m-00002-of-00002.gguf") as file:
        assert set(file.names()) == set(names)
        assert all(np.array_equal(file.read(name).numpy(), tensors[name]) for name in names)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(UserError, match=r"1 are missing in .*: m-00002-of-00002.gguf; download them"):
        GGUFFile(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "first.gguf")
    with pytest.raises(UserError, match="is the first of 2 parts of a model"):
        GGUFFile(tmp_path / "first.gguf")


# Hostile headers, written by hand: the writer of gguf refuses to.


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = entry("general.architecture", 8, text("llama"))


def header(tensors: list[bytes], entries: list[bytes], counts: tuple[int, int] | None = None) -> bytes:
    numbers = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(entries) + b"".join(tensors)


HUGE = 2**64 - 1
HOSTILE = {
    "nothing": (b"", "is empty"),
    "another format": (b"PK\x03\x04" + bytes(100), r"is not a GGUF file: it begins with b'PK"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of version 1; expected version 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "for big-endian machines"),
    "cut in the counts": (b"GGUF" + struct.pack("<IQ", 3, 0), "the file ends at 16"),
    "tensors without end": (header([], [ARCHITECTURE], (HUGE, 1)), "number of tensors is 18,446,744,073,709,551,615"),
    "entries without end": (header([], [ARCHITECTURE], (0, HUGE)), "number of metadata entries is"),
    "more entries than there are": (header([], [ARCHITECTURE], (0, 3)), "the length of a metadata key needs|can hold"),
    "a text without end": (header([], [struct.pack("<Q", 2**40) + bytes(20)]), "a metadata key has 1,099,"),
    "a value without end": (
        header([], [ARCHITECTURE, entry("a", 8, struct.pack("<Q", 2**30))]),
        "a has 1,073,741,824 bytes, expected at most",
    ),
    "an array without end": (
        header([], [ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 4, 2**60))]),
        "the length of a is 1,152,",
    ),
    "texts without end": (
        header([], [ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 8, 2**60))]),
        "the length of a is 1,152,",
    ),
    "a text in an array without end": (
        header([], [ARCHITECTURE, entry("a", 9, struct.pack("<IQQ", 8, 1, 2**62))]),
        "element 0 of a passes the end",
    ),
    "an array of arrays": (
        header([], [ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 9, 1) + bytes(20))]),
        "array of the type 9",
    ),
    "an unknown type": (header([], [ARCHITECTURE, entry("a", 77, bytes(20))]), "a has the unknown type 77"),
    "a key twice": (header([], [ARCHITECTURE, ARCHITECTURE]), "general.architecture occurs twice"),
    "a key that is no text": (
        header([], [struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)]),
        "a metadata key at byte .* is not UTF-8",
    ),
    "no architecture": (header([], []), "has no metadata general.architecture"),
    "an architecture that is a number": (
        header([], [entry("general.architecture", 4, bytes(4))]),
        "general.architecture is 0, expected a text",
    ),
    "an alignment of 0": (
        header([], [ARCHITECTURE, entry("general.alignment", 4, bytes(4))]),
        "general.alignment is 0",
    ),
    "an alignment of 3": (
        header([], [ARCHITECTURE, entry("general.alignment", 4, struct.pack("<I", 3))]),
        "alignment is 3, expected a power",
    ),
    "an alignment that is a text": (
        header([], [ARCHITECTURE, entry("general.alignment", 8, text("x"))]),
        "alignment is x",
    ),
    "many dimensions": (
        header([text("w") + struct.pack("<I", 2**31) + bytes(64)], [ARCHITECTURE]),
        "w has 2,147,483,648 dim",
    ),
    "no dimensions": (header([text("w") + struct.pack("<I", 0) + bytes(64)], [ARCHITECTURE]), "w has 0 dimensions"),
    "a shape that overflows": (header([tensor("w", (2**33, 2**33), 0, 0)], [ARCHITECTURE]), "no room for"),
    "a shape of 0": (header([tensor("w", (0, 8), 0, 0)], [ARCHITECTURE]), r"w has the shape \(8, 0\)"),
    "half a block": (
        header([tensor("w", (33,), 2, 0)], [ARCHITECTURE]) + bytes(999),
        "rows of 33, no multiple of the 32",
    ),
    "an unknown type of tensor": (header([tensor("w", (32,), 999, 0)], [ARCHITECTURE]), "tensor w is of type 999"),
    "a type that was removed": (header([tensor("w", (32,), 4, 0)], [ARCHITECTURE]), "tensor w is of type 4"),
    "data past the end": (
        header([tensor("w", (64,), 0, 0)], [ARCHITECTURE]) + bytes(100),
        "w ends at byte .* the file at",
    ),
    "an offset past the end": (
        header([tensor("w", (8,), 0, 2**63)], [ARCHITECTURE]) + bytes(200),
        "w ends at byte 9,223,",
    ),
    "an offset between": (
        header([tensor("w", (8,), 0, 7)], [ARCHITECTURE]) + bytes(200),
        "no multiple of the alignment 32",
    ),
    "tensors that overlap": (
        header([tensor("a", (16,), 0, 0), tensor("b", (16,), 0, 32)], [ARCHITECTURE]) + bytes(300),
        "b overlaps a",
    ),
    "a tensor twice": (
        header([tensor("a", (8,), 0, 0), tensor("a", (8,), 0, 32)], [ARCHITECTURE]) + bytes(300),
        "tensor a occurs twice",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_gets_one_clear_error(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as refusal:
        GGUFFile(path)
    assert str(path) in str(refusal.value)


def test_a_header_that_fills_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header([], [ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 0, 2**33))]))
        file.truncate(2**34)  # sparse: it takes no room
    with pytest.raises(UserError, match="the length of a is 8,589,934,592, more than"):
        GGUFFile(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_refused(share: float, tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="is damaged"):
        GGUFFile(path)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", "mixtral")
    assert refusals(path, MUTATED, seed=1) > MUTATED // 4


def refusals(path: Path, count: int, seed: int) -> int:
    """Read mutated copies of a file, and count those that are refused; anything but a UserError is raised."""
    original, generator, refused = path.read_bytes(), random.Random(seed), 0
    weights = original.index(b"token_embd.weight")
    copy = path.with_name("mutated.gguf")
    for _ in range(count):
        data = bytearray(original)
        for _ in range(generator.choice([1, 1, 2, 5, 40])):
            # most of the file are weights, which may hold anything: the header is what can be wrong
            place = generator.randrange(weights + 4000)
            match generator.randrange(4):
                case 0:
                    data[place] = generator.randrange(256)
                case 1:
                    data[place : place + 8] = struct.pack("<Q", generator.choice([0, 1, 2**31, 2**32, 2**63, HUGE]))
                case 2:
                    del data[place : place + generator.randrange(1, 64)]
                case _:
                    data[place:place] = generator.randbytes(generator.randrange(1, 64))
        copy.write_bytes(data)
        try:
            model = read_gguf(copy, lambda *_: None)
            for each in model.tensors.values():
                each.read()
        except UserError:
            refused += 1
    return refused
