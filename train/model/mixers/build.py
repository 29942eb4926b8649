"""The table of mixers."""

from ..config.model import ModelConfig
from .gated_delta import GatedDelta
from .mamba2 import Mamba2
from .mixer import Mixer
from .retnet import RetNet
from .rwkv7 import RWKV7

MIXERS: dict[str, type[Mixer]] = {"gated_delta": GatedDelta, "mamba2": Mamba2, "retnet": RetNet, "rwkv7": RWKV7}


def build_mixer(config: ModelConfig, layer: int) -> Mixer | None:
    """Build the mixer of a layer; None where it has attention."""
    return None if config.attends(layer) else MIXERS[config.mixer_of(layer)](config, layer)
