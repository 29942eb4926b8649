"""Run an exported model with numpy, onnxruntime and tokenizers, without torch and onnx.

    from adaptive_lm.runtime import Params, load

    for token in load("runs/demo/model").generate("How do mountains form?", Params(temperature=0)):
        print(token.text, end="", flush=True)

The names below are imported when they are first used, so that the command line starts without numpy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..contract.errors import UserError
    from .dial import Dial, Thresholds
    from .execution.cost import Usage
    from .execution.session import Session, Step
    from .format.manifest import Manifest
    from .generation.engine import Engine, Generation, Params, Token, load
    from .generation.tokenizer import Tokenizer
else:
    from ..contract.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "Dial": "dial",
            "Engine": "generation.engine",
            "Generation": "generation.engine",
            "Manifest": "format.manifest",
            "Params": "generation.engine",
            "Session": "execution.session",
            "Step": "execution.session",
            "Thresholds": "dial",
            "Token": "generation.engine",
            "Tokenizer": "generation.tokenizer",
            "Usage": "execution.cost",
            "UserError": ".contract.errors",
            "load": "generation.engine",
        },
    )

__all__ = [
    "Dial",
    "Engine",
    "Generation",
    "Manifest",
    "Params",
    "Session",
    "Step",
    "Thresholds",
    "Token",
    "Tokenizer",
    "Usage",
    "UserError",
    "load",
]
