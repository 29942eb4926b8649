"""The layout of a matrix that our operators multiply by: quantised in blocks, and stored as one stream of bytes.

y = W x with W (N outputs, K inputs). N is padded with zero rows to whole groups of 64 outputs, K with zeros to whole
blocks of 32 inputs. The groups follow each other, and inside a group the blocks, so that a product reads the matrix
once, from front to back, with one output in each lane of a vector register. A block holds

| precision | first | then |
|---|---|---|
| `fp32` | | 32 inputs x 64 outputs of float32 |
| `bf16` | | 32 inputs x 64 outputs of bfloat16, rounded to nearest even |
| `int8` | 64 scales s, float16 | 8 steps x 64 outputs x 4 inputs of uint8, q + 128; w = s q, q in -127..127 |
| `int4` | 64 scales s, float16; 64 zero points z, uint8 | 4 steps x 64 x 4 bytes; w = s (q - z / 16), q in 0..15 |

Byte t of step j of int4 holds input 8 j + t in its low half and input 8 j + 4 + t in its high half. The C++ side is
`src/kernels/linear.h`.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "bf16", "int8", "int4"]
Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")
"""In the order of the number that an operator's attribute states."""
GROUP = 64
"""Outputs of a group."""
BLOCK = 32
"""Inputs of a block, which share a scale in int8 and int4."""
KEY_BLOCK = 16
"""Keys of a block in the cache."""
ALIGNMENT = 64
"""Bytes to which a packed matrix is aligned in its file."""
BLOCK_BYTES: dict[Precision, int] = {"fp32": 8192, "bf16": 4096, "int8": 2176, "int4": 1216}
"""Bytes of one block of one group."""
ZERO_STEPS = 16
"""Parts of a step in which int4 states its zero point: an integer of four bits would move it by up to half a step."""


class Blocks(NamedTuple):
    """A matrix quantised in blocks, (N, K / 32, ...); `zeros` only for int4."""

    codes: Bytes  # (N, K / 32, 32): q + 128 (int8) or q (int4)
    scales: NDArray[np.float16]  # (N, K / 32)
    zeros: Bytes | None  # (N, K / 32), in sixteenths of a step


def padded(outputs: int, inputs: int) -> tuple[int, int]:
    """Return the numbers of outputs and inputs with padding."""
    return -(-outputs // GROUP) * GROUP, -(-inputs // BLOCK) * BLOCK


def packed_bytes(precision: Precision, outputs: int, inputs: int) -> int:
    """Return the size of a packed matrix."""
    rows, columns = padded(outputs, inputs)
    return rows // GROUP * (columns // BLOCK) * BLOCK_BYTES[precision]


def pack(weight: Array, precision: Precision, scales: Array | None = None) -> Bytes:
    """Pack a matrix, (N, K) or a stack of them (E, N, K), into a vector of bytes.

    Args:
        weight: The matrix.
        precision: Precision to round to.
        scales: As in `quantize`, (N, blocks) or (E, N, blocks), for int8 and int4.
    """
    if weight.ndim == 3:
        each = [None] * len(weight) if scales is None else scales
        return np.concatenate([pack(matrix, precision, own) for matrix, own in zip(weight, each, strict=True)])
    outputs, inputs = weight.shape
    rows, columns = padded(outputs, inputs)
    whole = np.zeros((rows, columns), np.float32)
    whole[:outputs, :inputs] = weight
    groups, blocks = rows // GROUP, columns // BLOCK
    if precision in ("fp32", "bf16"):
        values = whole if precision == "fp32" else to_bfloat16(whole)
        stream = values.reshape(groups, GROUP, blocks, BLOCK).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(stream).view(np.uint8).reshape(-1)
    if scales is not None:
        scales = np.pad(scales, ((0, rows - outputs), (0, 0)), constant_values=1)
    return _stream(quantize(whole, precision, scales), precision)


def pack_positions(embedding: Floats) -> Floats:
    """Arrange contextual positions (P, W) as blocks (P / 16, W, 16) like those of cached keys, filled with zeros."""
    whole = np.pad(np.asarray(embedding, np.float32), ((0, -len(embedding) % KEY_BLOCK), (0, 0)))
    return np.ascontiguousarray(whole.reshape(-1, KEY_BLOCK, whole.shape[1]).swapaxes(1, 2))


def quantize(weight: Array, precision: Precision, scales: Array | None = None) -> Blocks:
    """Quantise a matrix (N, K) to int8 or int4 in blocks of 32 inputs; K is a multiple of 32.

    Args:
        weight: The matrix.
        precision: int8 (symmetric) or int4 (asymmetric).
        scales: Factors (N, K / 32) of the step that the range of a block alone would give; None takes 1 everywhere.
    """
    blocks = np.asarray(weight, np.float32).reshape(len(weight), -1, BLOCK)
    factor = np.float32(1) if scales is None else np.asarray(scales, np.float32)
    tiny = np.finfo(np.float16).smallest_subnormal
    if precision == "int8":
        step = (np.abs(blocks).max(-1) / 127 * factor).astype(np.float16)
        step = np.maximum(step, tiny)
        codes = np.clip(np.rint(blocks / step.astype(np.float32)[..., None]), -127, 127) + 128
        return Blocks(codes.astype(np.uint8), step, None)
    # a zero point of 0 to 15.94 steps needs a range that contains 0
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    step = np.maximum(((high - low) / 15 * factor).astype(np.float16), tiny)
    wide = step.astype(np.float32)
    zeros = np.clip(np.rint(-low / wide * ZERO_STEPS), 0, 255)
    codes = np.clip(np.rint(blocks / wide[..., None] + zeros[..., None] / ZERO_STEPS), 0, 15)
    return Blocks(codes.astype(np.uint8), step, zeros.astype(np.uint8))


def dequantize(blocks: Blocks) -> Floats:
    """Return the matrix (N, K) that the codes stand for."""
    offset = 128.0 if blocks.zeros is None else blocks.zeros[..., None].astype(np.float32) / ZERO_STEPS
    values = (blocks.codes.astype(np.float32) - offset) * blocks.scales.astype(np.float32)[..., None]
    return np.asarray(values.reshape(len(values), -1), np.float32)


def rounded(weight: Array, precision: Precision, scales: Array | None = None) -> Floats:
    """Return the matrix (..., N, K) that a product really multiplies by: `weight` after packing with `scales`."""
    if precision == "fp32":
        return np.asarray(weight, np.float32)
    if precision == "bf16":
        return from_bfloat16(to_bfloat16(np.asarray(weight, np.float32)))
    flat = np.asarray(weight, np.float32).reshape(-1, weight.shape[-1])
    missing = -flat.shape[-1] % BLOCK
    whole = np.pad(flat, ((0, 0), (0, missing)))
    own = None if scales is None else scales.reshape(len(flat), -1)
    return dequantize(quantize(whole, precision, own))[:, : flat.shape[-1]].reshape(weight.shape)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Round finite float32 to the upper 16 bits, to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(values: NDArray[np.uint16]) -> Floats:
    """Widen bfloat16 to float32."""
    return np.asarray((values.astype(np.uint32) << 16).view(np.float32))


def _stream(blocks: Blocks, precision: Precision) -> Bytes:
    """Arrange quantised blocks (N, K / 32, 32) as the stream of `pack`."""
    groups, number = len(blocks.codes) // GROUP, blocks.codes.shape[1]

    def by_group(values: Array) -> Bytes:
        """Turn (N, K / 32) into the bytes (groups, K / 32, n) of each block."""
        moved = np.ascontiguousarray(values.reshape(groups, GROUP, number).transpose(0, 2, 1))
        return moved.view(np.uint8).reshape(groups, number, -1)

    codes: Array = blocks.codes.reshape(groups, GROUP, number, BLOCK // 4, 4).transpose(
        0, 2, 3, 1, 4
    )  # (g, b, 8, 64, 4)
    parts = [by_group(blocks.scales)]
    if precision == "int4":
        assert blocks.zeros is not None
        parts.append(by_group(blocks.zeros))
        codes = codes[:, :, 0::2] | (codes[:, :, 1::2] << 4)
    parts.append(np.ascontiguousarray(codes).reshape(groups, number, -1))
    return np.concatenate(parts, axis=2).reshape(-1)
