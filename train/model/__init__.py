"""The model in torch; `export/model` mirrors it node by node.

Names are imported when they are first used, so that the config of a run loads without torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config.loss import LossConfig
    from .config.model import ModelConfig
    from .config.sections import DepthConfig, FFNConfig
    from .losses import cross_entropy, training_loss
    from .output import ModelOutput, ThresholdTensors
    from .transformer import Transformer
else:
    from ...contract.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "DepthConfig": "config.sections",
            "FFNConfig": "config.sections",
            "LossConfig": "config.loss",
            "ModelConfig": "config.model",
            "ModelOutput": "output",
            "ThresholdTensors": "output",
            "Transformer": "transformer",
            "cross_entropy": "losses",
            "training_loss": "losses",
        },
    )

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
