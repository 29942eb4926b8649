"""The table of mixers."""

from collections.abc import Callable, Mapping

from ....runtime.format.manifest import Mixer
from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from .gated_delta import gated_delta
from .mamba2 import mamba2
from .retnet import retnet
from .rwkv7 import rwkv7
from .steps import Mixed, States, Steps, recall, remember

MIXERS: Mapping[Mixer, Callable[[Graph, Weights, ModelConfig, int, str, Steps, States], Mixed]] = {
    "retnet": retnet,
    "mamba2": mamba2,
    "gated_delta": gated_delta,
    "rwkv7": rwkv7,
}


def mix(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, steps: Steps, past: States) -> Mixed:
    """Run the mixer of a layer for its normed rows x (n, D): the output (n, D), and the states of all B sequences."""
    with g.scope("mixer"):
        before = States(*(recall(g, steps, name) if name else "" for name in past))
        out, after = MIXERS[config.mixer_of(layer)](g, weights, config, layer, x, steps, before)
        states = (remember(g, steps, old, new) if old else "" for old, new in zip(past, after, strict=True))
        return Mixed(out, States(*states))
