"""One layer's recurrent mixer as an operator in ONNX Runtime, with its states.

B batch, T time, N = B*T tokens, D width, H heads, W width of a head.
"""

from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper
from reference.model import MIXERS
from reference.routing import state_norm

from adaptive_lm.export.fused.mixers import mixer
from adaptive_lm.export.graph.builder import BOOL, FLOAT, INT64, IR_VERSION, OPSET, Graph
from adaptive_lm.export.graph.weights import Weights
from adaptive_lm.runtime.format.manifest import Precisions
from adaptive_lm.runtime.ops.layout import Precision
from adaptive_lm.runtime.ops.probe import DOMAIN, VERSION
from adaptive_lm.train.model import DepthConfig, ModelConfig
from adaptive_lm.train.model.config.sections import AttentionConfig
from adaptive_lm.train.model.mixers.build import build_mixer
from adaptive_lm.train.model.mixers.config import RecurrenceConfig

from ..graphs.one_operator import options
from .bound_call import call
from .operator_formulas import product

Array = NDArray[Any]
Kind = Literal["retnet", "mamba2", "gated_delta", "rwkv7"]

LAYER, NUM_LAYERS, CONTEXT = 1, 3, 512
LARGE = ("q", "k", "v", "gate", "in", "r", "o")
"""The matrices whose precision can be chosen."""


@dataclass(frozen=True)
class Setting:
    """The shape of a layer; every test changes a few of these."""

    mixer: Kind = "retnet"
    dim: int = 48
    num_heads: int = 4
    head_dim: int = 12
    conv: int = 4
    rank: int = 16
    positions: Literal["none", "rope"] = "rope"
    policy: Literal["every", "none", "project"] = "every"
    precision: Precision = "fp32"
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "post", "sandwich"] = "pre"

    @property
    def skips(self) -> bool:
        """Whether tokens may skip the layer."""
        return self.policy != "every"

    @property
    def config(self) -> ModelConfig:
        """The model that has the layer as its second of three."""
        return _config(self)

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the states of one sequence."""
        return self.config.state_shapes(LAYER)


@cache
def _config(s: Setting) -> ModelConfig:
    depth = {"layers_share": 0.5, "skipped_kv": s.policy} if s.policy != "every" else {}
    return ModelConfig(
        vocab_size=29,
        context_length=CONTEXT,
        dim=s.dim,
        num_layers=NUM_LAYERS,
        num_heads=s.num_heads,
        num_kv_heads=s.num_heads,
        head_dim=s.head_dim,
        mixers=s.mixer,
        recurrence=RecurrenceConfig(conv=s.conv, rank=s.rank if s.mixer == "rwkv7" else 0),
        attention=AttentionConfig(positions=s.positions),
        depth=DepthConfig.model_validate(depth),
        norm=s.norm,
        norm_place=s.norm_place,
    )


@cache
def weights(setting: Setting) -> dict[str, Array]:
    """Draw the parameters of the layer by their names in a checkpoint, in float32."""
    random, config = np.random.default_rng(3), setting.config
    module = build_mixer(config, LAYER)
    assert module is not None
    drawn: dict[str, Array] = {}
    for name, value in module.state_dict().items():
        shape = tuple(value.shape)
        noise = random.standard_normal(shape).astype(np.float32)
        if name == "decay":
            noise = value.numpy()
        elif len(shape) > 1:
            noise /= np.float32(shape[1] ** 0.5)
        elif name.endswith("norm.weight"):
            noise = 1 + noise / 4
        drawn[f"layers.{LAYER}.mixer.{name}"] = np.asarray(noise, np.float32)
    for name, has in (("attention_norm", config.has_norms_before), ("attention_post_norm", config.has_norms_after)):
        if has:
            drawn[f"layers.{LAYER}.{name}.weight"] = 1 + random.standard_normal(setting.dim).astype(np.float32) / 4
            if setting.norm == "layer":
                drawn[f"layers.{LAYER}.{name}.bias"] = random.standard_normal(setting.dim).astype(np.float32) / 4
    return drawn


@dataclass(frozen=True)
class Text:
    """The tokens of B sequences, and which of them run the layer."""

    x: Array  # (B, T, D)
    runs: Array  # (B, T) bool

    @classmethod
    def draw(cls, setting: Setting, batch: int, time: int, seed: int = 11) -> "Text":
        """Draw tokens, some of which skip the layer."""
        random = np.random.default_rng(seed)
        x = random.standard_normal((batch, time, setting.dim)).astype(np.float32)
        return cls(x, (random.random((batch, time)) < 0.6) | (not setting.skips))

    def part(self, sequences: slice, times: slice) -> "Text":
        """Take some of the tokens."""
        return Text(self.x[sequences, times], self.runs[sequences, times])


def expected(setting: Setting, text: Text) -> tuple[Array, dict[str, Array]]:
    """Compute h (B, T, D) of whole texts, and the states that they leave, by the reference in numpy and float64."""
    config, exact = setting.config, {name: value.astype(np.float64) for name, value in weights(setting).items()}

    class Rounded(MIXERS[setting.mixer]):  # type: ignore[misc]
        """The reference with the products of the operator."""

        def linear(self, name: str, x: Array) -> Array:
            precision = setting.precision if name in LARGE else "fp32"
            return product(self.of(f"{name}.weight"), x, precision)

    h, states = text.x.astype(np.float64), []
    for b in range(len(h)):
        sequence = Rounded(exact, config, LAYER, np.float64)
        for t in np.flatnonzero(text.runs[b]):
            out = sequence.step(h[b, t].copy(), int(t), None, (0, 0, 0))
            h[b, t] += state_norm(exact, config, f"layers.{LAYER}.attention_post_norm", out)
        states.append(sequence.states)
    return h, {"state": np.stack(states)}


@dataclass
class Operator:
    """The operator of a mixer with states that are written in place, zeros at the start."""

    setting: Setting
    batch: int
    threads: int = 1
    in_place: bool = True
    states: dict[str, Array] = field(init=False)
    lengths: Array = field(init=False)  # (L, B)
    seen: Array = field(init=False)  # (B,) tokens of each text so far, those that skipped the layer included

    def __post_init__(self) -> None:
        shapes = self.setting.states.items()
        self.states = {name: np.zeros((self.batch, *shape), np.float32) for name, shape in shapes}
        self.lengths = np.zeros((NUM_LAYERS, self.batch), np.int64)
        self.seen = np.zeros(self.batch, np.int64)

    def inputs(self, text: Text) -> dict[str, Array]:
        """Return the inputs of a pass over some tokens, by name; the parameters are in the graph."""
        batch, time = text.runs.shape
        inputs = {
            "x": text.x.reshape(batch * time, self.setting.dim),
            "slots": np.arange(batch),
            "lengths": self.lengths,
        }
        if self.setting.mixer == "retnet":
            inputs["positions"] = self.seen[:, None] + np.arange(time)
        if self.setting.skips:
            inputs["runs"] = text.runs.reshape(batch * time, 1)
        return inputs | {f"past_{name}": array for name, array in self.states.items()}

    def __call__(self, text: Text, **changes: Array) -> Array:
        """Compute h (B, T, D) for some tokens, and write the states."""
        inputs = self.inputs(text) | changes
        run = session(self.setting, self.threads)
        h, new_lengths, self.states = call(run, inputs, self.states, in_place=self.in_place)
        batch, time = text.runs.shape
        self.seen = self.seen + time
        self.lengths[LAYER] = new_lengths[0]
        return np.asarray(h.reshape(batch, time, self.setting.dim))


@lru_cache(maxsize=256)
def session(setting: Setting, threads: int) -> ort.InferenceSession:
    """Build a model of one node, as the export writes it."""
    config, g = setting.config, Graph("one_mixer")
    taken = Weights(weights(setting), Precisions.of(setting.precision))
    mixed = mixer(g, taken, config, LAYER, "x", "runs" if setting.skips else "")
    assert not taken.untaken()
    (node,) = g.nodes
    public = {mixed.h: "h", mixed.new_lengths: "new_lengths"}
    node.input[:] = [name.removesuffix(f".{LAYER}") for name in node.input]  # of a past state
    node.output[:] = [public.get(name, name.removesuffix(f".{LAYER}")) for name in node.output]
    types = {"runs": BOOL, **dict.fromkeys(("positions", "slots", "lengths", "new_lengths"), INT64)}
    given = [name for name in node.input if name and name not in g.initializers]
    graph = helper.make_graph(
        [node],
        "mixer",
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in given],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in node.output],
        list(g.initializers.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return ort.InferenceSession(model.SerializeToString(), options(threads), providers=["CPUExecutionProvider"])
