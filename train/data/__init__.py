"""Text to batches of tokens: `prepare(DataConfig, TokenizerConfig, seed=...) -> Corpus`. numpy only, never torch.

Names are imported when they are first used, so that the config of a run loads without numpy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import DataConfig, SamplingConfig, SourceConfig, TaskConfig, TokenizerConfig
    from .corpus import Corpus
    from .preparation import prepare
    from .windows.batches import Batch
else:
    from ...contract.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "Batch": "windows.batches",
            "Corpus": "corpus",
            "DataConfig": "config",
            "SamplingConfig": "config",
            "SourceConfig": "config",
            "TaskConfig": "config",
            "TokenizerConfig": "config",
            "prepare": "preparation",
        },
    )

__all__ = [
    "Batch",
    "Corpus",
    "DataConfig",
    "SamplingConfig",
    "SourceConfig",
    "TaskConfig",
    "TokenizerConfig",
    "prepare",
]
