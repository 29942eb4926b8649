"""Outputs of a teacher on disk: what is read is what was written, by parts, checked by digests."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.distillation.stored_outputs import Kind, Outputs, StoredOutputs, digest_of_tokens, windows_of

KIND = Kind("a" * 64, "b" * 64, 3, 1.0, window=8, vocabulary=50, own_end=None, precision="fp32", least_part=30)
"""Parts of 32 tokens, a multiple of the stride."""
TOKENS = 70


def outputs(span: range) -> Outputs:
    """Make outputs in which every number tells its place."""
    place = np.array(span)
    return Outputs((place[:, None] + np.arange(3)) % 50, -place[:, None] / 8 - np.arange(3), -place / 4.0, place / 2.0)


@pytest.fixture
def stored(tmp_path: Path) -> StoredOutputs:
    return StoredOutputs(tmp_path, KIND, TOKENS)


@pytest.fixture
def full(stored: StoredOutputs) -> StoredOutputs:
    for part in range(stored.parts):
        stored.write(part, outputs(stored.span(part)))
    return stored


def test_places_across_parts_are_read_as_they_were_written(full: StoredOutputs) -> None:
    places = np.array([69, 0, 31, 32, 33, 31, 64])
    read, expected = full.read(places), outputs(range(TOKENS))
    for mine, whole in zip(read, expected, strict=True):
        np.testing.assert_array_equal(mine, whole[places].astype(mine.dtype))


def test_the_stated_size_is_that_on_the_disk(full: StoredOutputs) -> None:
    assert full.bytes == sum(path.stat().st_size for path in full.folder.glob("*.outputs"))
    assert full.parts == 3


def test_a_large_vocabulary_is_stored_whole(tmp_path: Path) -> None:
    wide = StoredOutputs(tmp_path, replace(KIND, vocabulary=70_000), 4)
    made = outputs(range(4))
    wide.write(0, made._replace(ids=made.ids + 69_000))
    np.testing.assert_array_equal(wide.read(np.arange(4)).ids, made.ids + 69_000)


def test_what_was_written_before_a_stop_is_used_again(stored: StoredOutputs, tmp_path: Path) -> None:
    assert stored.missing() == [0, 1, 2]
    stored.write(1, outputs(stored.span(1)))
    assert StoredOutputs(tmp_path, KIND, TOKENS).missing() == [0, 2]


def damaged(path: Path) -> Iterator[str]:
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    yield "bytes"
    flipped = bytearray(content)
    flipped[50] ^= 1
    path.write_bytes(bytes(flipped))
    yield "digest"
    path.write_bytes(b"")
    yield "bytes"


def test_a_damaged_part_is_named_and_counts_as_missing(
    full: StoredOutputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason in damaged(full.path(1)):
        again = StoredOutputs(tmp_path, KIND, TOKENS)
        assert again.missing() == [1]
        message = capsys.readouterr().err
        assert "part-00001.outputs is damaged" in message
        assert reason in message
        with pytest.raises(UserError, match=r"cannot be read.*resume the run"):
            again.read(np.array([40]))


@pytest.mark.parametrize(
    "other",
    [
        {"tokens_sha256": "c" * 64},
        {"teacher_sha256": "c" * 64},
        {"count": 4},
        {"temperature": 2.0},
        {"window": 10},
        {"vocabulary": 51},
        {"own_end": 50},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_thing_that_outputs_depend_on_has_an_entry_of_its_own(
    full: StoredOutputs, tmp_path: Path, other: dict[str, object]
) -> None:
    assert not full.missing()
    assert StoredOutputs(tmp_path, replace(KIND, **other), TOKENS).missing()  # type: ignore[arg-type]


def test_a_refused_write_leaves_no_part(stored: StoredOutputs) -> None:
    stored.folder.parent.mkdir(exist_ok=True)
    stored.folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write.*Parts that were written before are used again"):
        stored.write(0, outputs(stored.span(0)))


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 70])
def test_windows_answer_for_every_token_once_with_half_a_window_before_it(tokens: int) -> None:
    answered: list[int] = []
    for start, span in windows_of(range(tokens), KIND, tokens):
        window = min(KIND.window, tokens)
        assert start >= 0
        assert start + window <= tokens
        assert start <= span.start
        assert span.stop <= start + window
        assert span.start - start >= min(span.start, window - KIND.stride)
        answered += span
    assert answered == list(range(tokens))


def test_the_digest_of_tokens_does_not_depend_on_their_type() -> None:
    tokens = np.arange(1000)
    assert digest_of_tokens(tokens.astype("<u2")) == digest_of_tokens(tokens.astype("<u4"))
    assert digest_of_tokens(tokens) != digest_of_tokens(tokens[::-1])
