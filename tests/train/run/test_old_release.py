"""T23: a run of an earlier version resumes. `old_run/` was written by commit 5bbc4a4, checkpoint format version 1."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adaptive_lm.train import training
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

OLD = Path(__file__).parent / "old_run"
LOSSES = [2.772905, 2.723787, 2.613045, 2.637474, 2.594442, 2.583619]
"""The losses of steps 7 to 12, as that commit itself continued from step 6."""


@pytest.fixture
def old(folder: Path, text_file: Path) -> Path:
    shutil.copytree(OLD, folder / "runs" / "old")
    shutil.copy(text_file, folder / "rivers.txt")
    return folder / "runs" / "old"


def test_a_run_of_an_earlier_version_continues_as_that_version_would_have(
    old: Path, display: Progress, story: io.StringIO
) -> None:
    """T23: resume experts, routed heads, depth, exits, restarts and a history of norms.

    The rates are high, so the tolerance allows for a token that is routed differently on another processor.
    """
    assert json.loads((old / "checkpoints" / "step-000006" / "complete.json").read_text())["format_version"] == 1
    assert load_checkpoint(old).config.optimizer.expert_turns == 1, "that version had no such setting"
    assert training.resume(named_run("old"), display=display).complete
    found = [record["loss"] for record in read_metrics(old / "metrics.jsonl")]
    np.testing.assert_allclose(found, LOSSES, rtol=2e-2)
    state = load_checkpoint(old).state
    assert state["windows"] == [12 * 4]
    assert len(state["tokens_digest"]) == 64
    assert "damaged" not in story.getvalue()
