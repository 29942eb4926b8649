"""The model in torch; `export/model` mirrors it node by node."""

from .config import ModelConfig
from .losses import LossConfig, cross_entropy, training_loss
from .sections import DepthConfig, FFNConfig
from .transformer import ModelOutput, ThresholdTensors, Transformer

__all__ = [
    "DepthConfig",
    "FFNConfig",
    "LossConfig",
    "ModelConfig",
    "ModelOutput",
    "ThresholdTensors",
    "Transformer",
    "cross_entropy",
    "training_loss",
]
