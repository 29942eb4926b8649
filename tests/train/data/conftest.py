"""Fixtures for the data tests: a cache of their own, and functions that prepare a few lines of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lm.train.data import Corpus, DataConfig, TokenizerConfig, prepare


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache, so that no test sees what another has tokenised."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ADAPTIVE_CACHE", str(folder))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """`write(name, content)` makes a file and gives its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def said() -> list[str]:
    """Return the messages of the last `corpus_of`."""
    return []


@pytest.fixture
def corpus_of(said: list[str]) -> Callable[..., Corpus]:
    """`corpus_of(*sources, tokenizer="bytes", seed=0, vocab_size=None, **data)` prepares a corpus."""

    def corpus_of(
        *sources: Any, tokenizer: str = "bytes", seed: int = 0, vocab_size: int | None = None, **data: Any
    ) -> Corpus:
        said.clear()
        config = DataConfig(sources=sources, **data)
        return prepare(config, TokenizerConfig(kind=tokenizer, vocab_size=vocab_size), seed=seed, log=said.append)

    return corpus_of
