"""One layer's attention as an operator in ONNX Runtime, with its caches.

B batch, T time, N = B*T tokens, D width, H query heads, K key/value heads, W width of a head, C capacity, P contextual
positions.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from adaptive_lm.runtime.ops.layout import PRECISIONS, Precision, pack, pack_positions
from adaptive_lm.runtime.ops.probe import DOMAIN, VERSION

from ..graphs.one_operator import options
from .bound_call import call

Array = NDArray[Any]
CacheType = Literal["float32", "float16", "int8"]

LAYER, NUM_LAYERS, CONTEXT, EPS = 1, 3, 160, 1e-5
NUM_POSITIONS = 9
POLICIES = ("every", "none", "project")
QK_NORMS = ("none", "head", "full")
INPUTS = (
    *("x", "runs", "positions", "slots", "lengths", "windows", "head_weights"),
    *("norm", "norm_bias", "post_norm", "post_norm_bias", "q", "kv", "o", "q_bias", "kv_bias", "o_bias"),
    *("q_norm", "k_norm", "cos", "sin", "position_embedding", "past_key", "past_value", "past_counted"),
)
CACHES = ("key", "value", "counted")
KEYS_AND_VALUES = ("present_key", "present_value")
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Setting:
    """The shape of a layer; every test changes a few of these."""

    dim: int = 48
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    positions: Literal["none", "rope", "cope"] = "rope"
    window: int = 0
    by_token: bool = False
    """Whether each token has a window of its own, up to `window`."""
    policy: Literal["every", "none", "project"] = "every"
    routed: bool = False
    """Whether each token chooses heads."""
    capacity: int = 33
    cache: CacheType = "float32"
    precision: Precision = "fp32"
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    qk_norm: Literal["none", "head", "full"] = "head"
    biases: bool = False
    softcap: float = 0.0
    share: float = 1.0
    """Share of the components of a head that RoPE rotates."""

    @property
    def rotated(self) -> int:
        """Components of a head that RoPE rotates."""
        return int(self.head_dim * self.share) if self.positions == "rope" else 0

    @property
    def skips(self) -> bool:
        """Whether tokens may skip the layer."""
        return self.policy != "every"

    @property
    def counts(self) -> bool:
        """Whether the cache says which cells count for contextual positions."""
        return self.policy == "project" and self.positions == "cope"

    def weights(self) -> dict[str, Array]:
        """Draw the matrices and vectors of the layer."""
        D, H, K, W = self.dim, self.num_heads, self.num_kv_heads, self.head_dim
        weights = {
            "q": normal(H * W, D, seed=2) / D**0.5,
            "kv": normal(2 * K * W, D, seed=3) / D**0.5,
            "o": normal(D, H * W, seed=4) / (H * W) ** 0.5,
        }
        for place, name in enumerate(("norm", "post_norm")):
            if self.norm_place in (("pre", "post")[place], "sandwich"):
                weights[name] = 1 + normal(D, seed=1 + 20 * place) / 4
                if self.norm == "layer":
                    weights[f"{name}_bias"] = normal(D, seed=18 + place) / 4
        if self.qk_norm != "none":
            of_q, of_k = (H * W, K * W) if self.qk_norm == "full" else (W, W)
            weights |= {"q_norm": 1 + normal(of_q, seed=5) / 4, "k_norm": 1 + normal(of_k, seed=6) / 4}
        if self.biases:
            widths = {"q_bias": H * W, "kv_bias": 2 * K * W, "o_bias": D}
            weights |= {name: normal(width, seed=8 + n) / 4 for n, (name, width) in enumerate(widths.items())}
        if self.positions == "rope":
            angles = np.arange(CONTEXT)[:, None] * 10.0 ** (-4 * np.arange(self.rotated // 2) / self.rotated)
            weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        if self.positions == "cope":
            weights["position_embedding"] = normal(NUM_POSITIONS, W, seed=7) / 2
        return weights


@dataclass(frozen=True)
class Text:
    """The tokens of B sequences and their decisions."""

    x: Array  # (B, T, D)
    runs: Array  # (B, T) bool
    windows: Array  # (B, T) int64
    head_weights: Array  # (B, T, H), 0: not chosen

    @classmethod
    def draw(cls, setting: Setting, batch: int, time: int, seed: int = 11) -> "Text":
        """Draw tokens, some of which skip the layer and most of which leave heads out."""
        random = np.random.default_rng(seed)
        chosen = random.random((batch, time, setting.num_heads)) < 0.4
        chosen[..., -1] |= ~chosen.any(-1)
        weights = (0.5 + random.random(chosen.shape)) * chosen if setting.routed else np.ones(chosen.shape)
        windows = random.integers(1, setting.window + 1, (batch, time)) if setting.by_token else np.zeros((batch, time))
        return cls(
            normal(batch, time, setting.dim, seed=seed + 1),
            (random.random((batch, time)) < 0.6) | (not setting.skips),
            windows.astype(np.int64),
            weights.astype(np.float32),
        )

    def part(self, sequences: slice, times: slice) -> "Text":
        """Take some of the tokens."""
        return Text(*(array[sequences, times] for array in (self.x, self.runs, self.windows, self.head_weights)))


def normal(*shape: int, seed: int) -> Array:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass
class Operator:
    """The operator Attention with caches that are written in place. Cells that are not written hold NaN."""

    setting: Setting
    batch: int
    threads: int = 1
    in_place: bool = True
    caches: dict[str, Array] = field(init=False)
    lengths: Array = field(init=False)  # (L, B)
    seen: Array = field(init=False)  # (B,) tokens of each text so far, those that skipped the layer included

    def __post_init__(self) -> None:
        s = self.setting
        elements = s.head_dim + 4 * (s.cache == "int8")
        shapes = dict.fromkeys(("key", "value"), (self.batch, s.num_kv_heads, s.capacity, elements))
        self.caches = {name: _unwritten(shape, np.dtype(s.cache)) for name, shape in shapes.items()}
        if s.counts:
            self.caches["counted"] = _unwritten((self.batch, 1, s.capacity, 1), np.dtype(np.float32))
        self.lengths = np.zeros((NUM_LAYERS, self.batch), np.int64)
        self.seen = np.zeros(self.batch, np.int64)

    def inputs(self, text: Text) -> dict[str, Array]:
        """Return the inputs of a pass over some tokens, by name."""
        s, (batch, time) = self.setting, text.runs.shape
        weights = s.weights()
        inputs = weights | {name: pack(weights[name], s.precision) for name in ("q", "kv", "o")}
        inputs |= {
            "x": text.x.reshape(batch * time, s.dim),
            "positions": self.seen[:, None] + np.arange(time),
            "slots": np.arange(batch),
            "lengths": self.lengths,
        }
        if s.positions == "cope":
            inputs["position_embedding"] = pack_positions(weights["position_embedding"])
        if s.skips:
            inputs["runs"] = text.runs.reshape(batch * time, 1)
        if s.by_token:
            inputs["windows"] = text.windows.reshape(-1) * text.runs.reshape(-1)
        if s.routed:
            inputs["head_weights"] = text.head_weights.reshape(batch * time, s.num_heads)
        return inputs | {f"past_{name}": array for name, array in self.caches.items()}

    def __call__(self, text: Text, **changes: Array) -> Array:
        """Compute h (B, T, D) for some tokens, and write the caches."""
        inputs = self.inputs(text) | changes
        run = session(self.setting, self.threads, frozenset(inputs))
        h, new_lengths, self.caches = call(run, inputs, self.caches, in_place=self.in_place)
        batch, time = text.runs.shape
        self.seen = self.seen + time
        self.lengths[LAYER] = new_lengths[0]
        return np.asarray(h.reshape(batch, time, self.setting.dim))


@lru_cache(maxsize=256)
def session(setting: Setting, threads: int, inputs: frozenset[str]) -> ort.InferenceSession:
    """Build a model of one node with the named inputs."""
    s = setting
    element = helper.np_dtype_to_tensor_dtype(np.dtype(s.cache))
    types = dict.fromkeys(INPUTS, FLOAT) | {"past_key": element, "past_value": element, "runs": TensorProto.BOOL}
    types |= {"new_lengths": TensorProto.INT64} | dict.fromkeys(KEYS_AND_VALUES, element)
    types |= dict.fromkeys(("positions", "slots", "lengths", "windows"), TensorProto.INT64)
    types |= dict.fromkeys(("q", "kv", "o"), TensorProto.UINT8)
    names = [name if name in inputs else "" for name in INPUTS]
    outputs = ["h", "new_lengths", *(f"present_{name}" for name in CACHES if f"past_{name}" in inputs)]
    code = PRECISIONS.index(s.precision)
    node = helper.make_node(
        "Attention", names, outputs, name="one_attention", domain=DOMAIN, layer=LAYER, eps=EPS, num_heads=s.num_heads,
        num_kv_heads=s.num_kv_heads, head_dim=s.head_dim, policy=POLICIES.index(s.policy), window=s.window,
        precision_q=code, precision_kv=code, precision_o=code,
        contextual_positions=NUM_POSITIONS if s.positions == "cope" else 0, rotated=s.rotated,
        qk_norm=QK_NORMS.index(s.qk_norm), softcap=s.softcap,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, types[name], None) for name in names if name],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), options(threads), providers=["CPUExecutionProvider"])


def _unwritten(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Allocate a cache of bytes 255: NaN in float32, float16 and the scales of int8."""
    return np.frombuffer(bytearray(b"\xff" * (int(np.prod(shape)) * dtype.itemsize)), dtype).reshape(shape)
