"""The digest of the tokens that a run was trained on (T16)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import Corpus, prepare
from adaptive_lm.train.data.windows.batches import Batch
from adaptive_lm.train.loop.figures.data_digest import digest_with
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

IDS = np.arange(8).reshape(2, 4)
BATCH = Batch(IDS, IDS + 1, np.ones((2, 4), dtype=bool))
UNSCORED = np.array([[True] * 4, [True, True, True, False]])


@pytest.mark.parametrize(
    "other",
    [
        [BATCH, BATCH._replace(ids=IDS + (IDS == 7))],
        [BATCH, BATCH._replace(targets=IDS)],
        [BATCH, BATCH._replace(loss_mask=UNSCORED)],
        [BATCH, BATCH._replace(ids=IDS[::-1])],
        [BATCH],
        [BATCH, BATCH, BATCH],
        [BATCH, Batch(*(part.reshape(4, 2) for part in BATCH))],
    ],
    ids=["a token", "a target", "what is scored", "the order", "one lost", "one repeated", "the shape"],
)
def test_any_difference_makes_another_digest(other: list[Batch]) -> None:
    """T16."""

    def digest(batches: list[Batch]) -> str:
        found = ""
        for batch in batches:
            found = digest_with(found, batch)
        return found

    assert digest([BATCH, BATCH]) == digest([BATCH, Batch(*(part.copy(order="F") for part in BATCH))])
    assert digest([BATCH, BATCH]) != digest(other)


def test_a_checkpoint_has_the_digest_of_the_batches_so_far(
    tiny_config: Callable[..., RunConfig], folder: Path, display: Progress
) -> None:
    """T16: the first 48 windows in their order; in `adaptive runs --json` too."""
    config = tiny_config()
    training.begin(config, named_run("a"), stop_at=5, display=display)
    training.resume(named_run("a"), display=display)
    corpus: Corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None)
    expected = ""
    for step in range(12):
        expected = digest_with(expected, corpus.batch(step * 4, 4, 32))
    assert load_checkpoint("runs/a").state["tokens_digest"] == expected
    assert summary(Path("runs/a")).figures()["tokens_digest"] == expected
