"""Runs on varied text: resumed exactly, and refused when the settings change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


@pytest.fixture
def varied(tiny_config: Make, folder: Path) -> Make:
    """Return a function that makes the config of a run of several epochs with every augmentation."""
    (folder / "table.tsv").write_text("sun\tmoon\nriver\tstone\n")
    augment = {"word_dropout": 0.1, "span_shuffle": 0.5, "synonyms": str(folder / "table.tsv"), "synonym_share": 0.5}

    def make(**more: object) -> RunConfig:
        return tiny_config(data={"augment": augment | more}, trainer={"batch_size": 64})

    return make


def test_a_run_on_varied_text_resumes_to_the_last_bit(varied: Make, display: Progress) -> None:
    """T13, T14, T15: 12 = 4 + 4 + 4 steps, through several epochs and wordings."""
    training.begin(varied(), named_run("a"), display=display)
    run = named_run("b")
    training.begin(varied(), run, display=display, stop_at=4)
    training.resume(run, display=display, stop_at=8)
    training.resume(run, display=display)
    a, b = load_checkpoint("runs/a"), load_checkpoint("runs/b")
    assert all(torch.equal(a.model_state[name], b.model_state[name]) for name in a.model_state)
    assert a.state["tokens_digest"] == b.state["tokens_digest"]


def test_other_settings_are_refused_on_resume(varied: Make, display: Progress, folder: Path) -> None:
    """T18: the settings by their names, and a table that was changed by the digest of the text."""
    run = named_run("a")
    training.begin(varied(), run, display=display, stop_at=2)
    with pytest.raises(UserError, match=r"data\.augment\.word_dropout: 0\.1 -> 0\.3"):
        training.resume(run, [{"data": {"augment": {"word_dropout": 0.3}}}], display=display)
    (folder / "table.tsv").write_text("sun\tstone\n")
    with pytest.raises(UserError, match="digest"):
        training.resume(run, display=display)
