"""A model of one node with a known answer, by which a library shows that it and ONNX Runtime understand each other.

The bytes are written here field by field, since the runtime does not have the package onnx. Field numbers are those of
onnx.proto.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import pack

DOMAIN = "adaptive_lm"
"""Domain of our operators."""
VERSION = 4
"""Version of the operators and of the layout of their weights; a library or a graph of another one is not used."""
DIM, VOCAB = 40, 70
"""Shape of the product: neither is a whole number of blocks or groups."""
FLOAT, INT64, UINT8 = 1, 7, 2  # TensorProto.DataType


def probe_inputs() -> dict[str, NDArray[Any]]:
    """Return the inputs of the probe: two tokens, whose last is multiplied by an output head."""
    x = (np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM) % 7 - 3) / 4
    head = (np.arange(VOCAB * DIM, dtype=np.float32).reshape(VOCAB, DIM) % 11 - 5) / 8
    return {
        "x": x,
        "norm": np.ones(DIM, np.float32),
        "head": pack(head, "fp32"),
        "logit_rows": np.asarray([1], np.int64),
    }


def probe_answer() -> NDArray[np.float64]:
    """Return the logits of the probe, (1, VOCAB), by numpy."""
    x = (np.arange(DIM, 2 * DIM, dtype=np.float64) % 7 - 3) / 4
    head = (np.arange(VOCAB * DIM, dtype=np.float64).reshape(VOCAB, DIM) % 11 - 5) / 8
    return np.asarray((head @ (x / np.sqrt((x * x).mean() + 1e-5)))[None])


def probe_model() -> bytes:
    """Return the ONNX file of the probe."""
    inputs = probe_inputs()
    names = ("x", "norm", "", "head", "logit_rows")  # LayerNorm would have a bias
    node = b"".join(_text(1, name) for name in names) + _text(2, "logits") + _text(4, "Logits") + _text(7, DOMAIN)
    attributes = {"eps": 1e-5, "softcap": 0.0, "vocab": VOCAB, "precision": 0}
    node += b"".join(_message(5, _attribute(*pair)) for pair in attributes.items())
    types = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64, np.dtype(np.uint8): UINT8}
    graph = _message(1, node) + _text(2, "probe")
    graph += b"".join(_message(11, _value(n, types[a.dtype], a.shape)) for n, a in inputs.items())
    graph += _message(12, _value("logits", FLOAT, (1, VOCAB)))
    opsets = _message(8, _text(1, "") + _number(2, 24)) + _message(8, _text(1, DOMAIN) + _number(2, VERSION))
    return _number(1, 11) + _message(7, graph) + opsets


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + _key(2, 5) + struct.pack("<f", value) + _number(20, 1)


def _value(name: str, dtype: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_message(1, _number(1, size)) for size in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, dtype) + _message(2, dims)))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
