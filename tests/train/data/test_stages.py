"""Sources read one after the other, each for its number of epochs."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError
from support.texts import PAIRS, decoded, jsonl, lines

from adaptive_lm.train.data import DataConfig, SourceConfig
from adaptive_lm.train.data.stages import Stages

LENGTH = 16


class Counted:
    """A series of `size` windows per epoch."""

    def __init__(self, size):
        self.size = size

    def count(self, epochs, length):
        return epochs * self.size


def staged(write, corpus_of, *epochs, pack="stream"):
    """Make a corpus of sources "aaa...", "bbb...", each 720 training characters, with this number of epochs each."""
    sources = [
        SourceConfig(path=write(f"{name}.txt", name * 800), epochs=count)
        for name, count in zip("abc", epochs, strict=False)
    ]
    return corpus_of(*sources, pack=pack)


def sources_of(corpus, steps, batch_size=4):
    """List the letter of each window, in training order."""
    rows = corpus.batch(0, steps * batch_size, LENGTH).ids
    return [decoded(corpus, row)[-1] for row in rows]


def test_each_window_belongs_to_the_stage_that_its_number_falls_in():
    stages = Stages([Counted(10), Counted(3), Counted(5)], [2, 4, 1])
    dealt = [stages.deal(number, 8) for number in range(40)]
    assert dealt[:20] == [(0, n) for n in range(20)]
    assert dealt[20:32] == [(1, n) for n in range(12)]
    assert dealt[32:] == [(2, n) for n in range(8)]  # the last continues
    assert stages.total(8) == 20 + 12 + 5
    assert Stages([Counted(10), Counted(3)], [2, None]).total(8) is None


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_the_first_source_is_read_so_many_times_then_the_next(write, corpus_of, pack):
    corpus = staged(write, corpus_of, 2, 1, pack=pack)
    each = 721 // LENGTH if pack == "stream" else -(-720 // LENGTH)
    assert corpus.total_windows(LENGTH) == 3 * each
    letters = sources_of(corpus, -(-3 * each // 4))
    assert letters[: 3 * each] == ["a"] * 2 * each + ["b"] * each


def test_every_document_comes_once_in_each_epoch_of_its_stage(write, corpus_of):
    records = [{"text": f"{n:02d}xyz"} for n in range(40)]
    corpus = corpus_of(
        SourceConfig(path=write("a.jsonl", jsonl(records)), epochs=3),
        SourceConfig(path=write("b.jsonl", jsonl([{"text": "bbbbb"}] * 40)), epochs=1),
        pack="documents",
    )
    first = corpus._windows[0].count(3, LENGTH)
    seen = Counter()
    for number in range(first):
        text = decoded(corpus, corpus.batch(number, 1, LENGTH).ids[0])
        seen.update(part[:2] for part in text.split("<|endoftext|>") if part)
    assert set(seen) == {f"{n:02d}" for n in range(36)}  # the last tenth is held out
    assert set(seen.values()) == {3}


def test_a_resumed_run_finds_itself_in_the_stage_it_was_in(write, corpus_of):
    """T15, T16: a batch depends on its step alone, whichever batch was read before."""
    in_turn = staged(write, corpus_of, 2, 1, pack="documents")
    batches = [in_turn.batch(step * 4, 4, LENGTH) for step in range(40)]
    for step in (39, 23, 22, 0):
        again = staged(write, corpus_of, 2, 1, pack="documents").batch(step * 4, 4, LENGTH)
        for a, b in zip(again, batches[step], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_window_belongs_to_a_stage_and_has_an_epoch(write, corpus_of):
    corpus = staged(write, corpus_of, 1, 1, 1)  # 45 windows each
    found = [corpus.stage(number, LENGTH) for number in range(200)]
    assert found == [(0, 45)] * 45 + [(45, 90)] * 45 + [(90, None)] * 110
    mixed = corpus_of(write("a.txt", lines(50)), write("b.txt", lines(50)))
    assert mixed.stage(28, LENGTH) == (0, None)
    assert corpus.epoch(50, LENGTH) == 45
    assert mixed.epoch(0, LENGTH) == sum(windows.count(1, LENGTH) for windows in mixed._windows)


def test_where_a_step_reads_is_said_by_source_and_window(write, corpus_of):
    corpus = staged(write, corpus_of, 1, 1)
    names = corpus.names
    assert corpus.where(0, 4, LENGTH) == f"{names[0]} windows 0-3"
    assert corpus.where(44, 4, LENGTH) == f"{names[0]} window 44, {names[1]} windows 0-2"


def test_epochs_change_the_digest_and_a_corpus_without_them_has_no_end(write, corpus_of):
    digests = {staged(write, corpus_of, *epochs).digest for epochs in [(1, 1), (1, 2), (1, None), (None, None)]}
    assert len(digests) == 4
    assert corpus_of(write("a.jsonl", jsonl(PAIRS))).total_windows(LENGTH) is None
    assert staged(write, corpus_of, 1, None).total_windows(LENGTH) is None


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["a.txt", {"path": "b.txt", "epochs": 2}], "a.txt has no epochs"),
        ([{"path": "a.txt", "epochs": 2, "weight": 0.5}], "a.txt has a weight"),
        ([{"path": "a.txt", "epochs": 2}, {"path": "b.txt", "weight": 0.5}], "b.txt has a weight"),
        ([{"path": "a.txt", "epochs": 0}], "greater than or equal to 1"),
    ],
)
def test_stages_that_make_no_sense_are_refused(sources, words):
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate({"sources": sources})


@pytest.mark.parametrize(
    ("sources", "ends"),
    [
        ([], False),
        (["a.txt"], False),
        ([{"path": "a.txt", "epochs": 2}, "b.txt"], False),
        ([{"path": "a.txt", "epochs": 2}, {"path": "b.txt", "epochs": 1}], True),
    ],
)
def test_only_sources_that_all_have_epochs_end_a_run(sources, ends):
    assert DataConfig.model_validate({"sources": sources}).ends is ends
