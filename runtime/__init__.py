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
    from .execution.batch import Batch
    from .execution.sequence import Sequence
    from .execution.session import Session
    from .execution.step import Step, Work
    from .execution.usage.cost import Usage
    from .format.manifest import Manifest
    from .generation.engine import Engine, load
    from .generation.generation import Generation
    from .generation.loop import Event, Loop
    from .generation.many import Completion
    from .generation.request import Request, Token
    from .generation.sampling.params import Params
    from .generation.search.beam_search import BeamSearch
    from .generation.search.hypothesis import Found, Hypothesis
    from .generation.text.tokenizer import Tokenizer
else:
    from ..contract.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "Batch": "execution.batch",
            "BeamSearch": "generation.search.beam_search",
            "Dial": "dial",
            "Completion": "generation.many",
            "Engine": "generation.engine",
            "Event": "generation.loop",
            "Found": "generation.search.hypothesis",
            "Generation": "generation.generation",
            "Hypothesis": "generation.search.hypothesis",
            "Loop": "generation.loop",
            "Manifest": "format.manifest",
            "Params": "generation.sampling.params",
            "Request": "generation.request",
            "Sequence": "execution.sequence",
            "Session": "execution.session",
            "Step": "execution.step",
            "Thresholds": "dial",
            "Token": "generation.request",
            "Tokenizer": "generation.text.tokenizer",
            "Usage": "execution.usage.cost",
            "UserError": ".contract.errors",
            "Work": "execution.step",
            "load": "generation.engine",
        },
    )

__all__ = [
    "Batch",
    "BeamSearch",
    "Completion",
    "Dial",
    "Engine",
    "Event",
    "Found",
    "Generation",
    "Hypothesis",
    "Loop",
    "Manifest",
    "Params",
    "Request",
    "Sequence",
    "Session",
    "Step",
    "Thresholds",
    "Token",
    "Tokenizer",
    "Usage",
    "UserError",
    "Work",
    "load",
]
