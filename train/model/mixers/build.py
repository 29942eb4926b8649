"""The table of mixers."""

from ..config import ModelConfig
from .mamba2 import Mamba2
from .mixer import Mixer
from .retnet import RetNet

MIXERS: dict[str, type[Mixer]] = {"mamba2": Mamba2, "retnet": RetNet}


def build_mixer(config: ModelConfig, layer: int) -> Mixer | None:
    """Build the mixer of a layer; None where it has attention.

    Raises:
        ValueError: There is no such mixer yet.
    """
    kind = config.mixer_of(layer)
    if kind == "attention":
        return None
    if kind not in MIXERS:
        raise ValueError(f"mixers of layer {layer} is {kind}, which is not built yet; take one of {', '.join(MIXERS)}")
    return MIXERS[kind](config)
