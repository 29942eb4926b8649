"""Text to batches of tokens: `prepare(DataConfig, TokenizerConfig, seed=...) -> Corpus`. numpy only, never torch."""

from .batches import Batch
from .config import DataConfig, SourceConfig, TokenizerConfig
from .corpus import Corpus
from .preparation import prepare

__all__ = ["Batch", "Corpus", "DataConfig", "SourceConfig", "TokenizerConfig", "prepare"]
