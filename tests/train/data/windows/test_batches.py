"""Windows: each epoch covers the text once, in another order and from another place; nothing is remembered."""

import itertools
from collections import Counter

import numpy as np
import pytest

from adaptive_lm.train.data.cache import Stream
from adaptive_lm.train.data.windows.batches import DocumentWindows, StreamWindows, document_rows, sequential_rows

EOS = 0


def stream_of(*documents, masked=False):
    """Make a stream of documents of tokens; when masked, odd tokens and the ends are scored."""
    tokens, docs = [EOS], []
    for document in documents:
        docs.append(len(tokens))
        tokens += [*document, EOS]
    tokens = np.array(tokens, dtype="<u2")
    mask = (tokens % 2 == 1) | (tokens == EOS) if masked else None
    return Stream(tokens, mask, np.array(docs, dtype="<u8"))


COUNTING = stream_of(range(1, 100))  # 101 tokens, a ring of 100: eos, 1, 2, ..., 99


@pytest.mark.parametrize("length", [1, 7, 10, 33, 50, 100])
def test_the_windows_of_an_epoch_cover_the_ring_without_overlap(length):
    windows = StreamWindows(COUNTING, key=5)
    count = windows.windows_per_epoch(length)
    assert count == 100 // length
    for epoch in range(4):
        targets = Counter()
        for number in range(epoch * count, (epoch + 1) * count):
            row = windows.row(number, length)
            assert row.ids.shape == row.targets.shape == row.loss_mask.shape == (length,)
            np.testing.assert_array_equal(row.targets, (row.ids + 1) % 100)  # each target is the next token
            targets.update(row.targets.tolist())
        assert len(targets) == count * length
        assert max(targets.values()) == 1


def test_epochs_begin_at_other_places_and_come_in_other_orders():
    windows = StreamWindows(COUNTING, key=5)
    epochs = [[int(windows.row(e * 10 + i, 10).ids[0]) for i in range(10)] for e in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert len({min(epoch) for epoch in epochs}) > 5
    assert all(epoch != sorted(epoch) for epoch in epochs)
    # The steps from window to window do not depend on where the epoch began: they tell the order alone.
    assert len({tuple((b - a) % 100 for a, b in itertools.pairwise(epoch)) for epoch in epochs}) == 20


def test_over_the_epochs_no_token_is_left_out():
    windows = StreamWindows(COUNTING, key=5)
    seen = Counter()
    for number in range(300):  # 100 epochs of 3 windows of 33: one token short of all in each
        seen.update(windows.row(number, 33).targets.tolist())
    assert len(seen) == 100
    assert min(seen.values()) >= 85


def test_the_mask_of_a_stream_belongs_to_its_targets():
    windows = StreamWindows(stream_of(range(1, 50), range(50, 99), masked=True), key=1)
    for number in range(200):
        row = windows.row(number, 13)
        np.testing.assert_array_equal(row.loss_mask, (row.targets % 2 == 1) | (row.targets == EOS))


def test_where_the_ring_closes_the_mask_is_that_of_the_last_token():
    stream = stream_of(range(1, 100), masked=True)
    stream.mask[0], stream.mask[-1] = (
        True,
        False,
    )  # the first is context and no target; the last is one, here not scored
    windows = StreamWindows(stream, key=1)
    rows = [windows.row(number, 10) for number in range(500)]
    assert sum(int(row.loss_mask[row.targets == EOS].sum()) for row in rows) == 0


DOCUMENTS = [range(100 * d + 1, 100 * d + 1 + size) for d, size in enumerate([3, 9, 1, 5, 5, 2, 7, 4])]


def test_whole_documents_start_windows_and_the_rest_is_padded():
    windows = DocumentWindows(stream_of(*DOCUMENTS), key=2, eos_id=EOS)
    starts = {d[0] for d in DOCUMENTS}
    for number in range(100):
        row = windows.row(number, 12)
        assert int(row.ids[0]) in starts
        ids = [*row.ids.tolist(), int(row.targets[-1])]
        for position, token in enumerate(ids):
            if token in starts:  # the window contains the whole document
                document = next(d for d in DOCUMENTS if d[0] == token)
                assert ids[position : position + len(document) + 1] == [*document, EOS]
                assert row.loss_mask[position : position + len(document)].all()
                if position:
                    assert not row.loss_mask[position - 1]  # what came before says nothing of it
        last = max(p for p, token in enumerate(ids) if token != EOS)
        assert not row.loss_mask[last + 1 :].any()


def test_every_epoch_holds_every_document_once_in_another_order():
    windows = DocumentWindows(stream_of(*DOCUMENTS), key=2, eos_id=EOS)
    starts = {d[0] for d in DOCUMENTS}
    number, orders = 0, []
    for _ in range(10):
        order = []
        while len(order) < len(DOCUMENTS):
            order += [t for t in windows.row(number, 12).ids.tolist() if t in starts]
            number += 1
        assert set(order) == starts
        orders.append(tuple(order))
    assert len(set(orders)) == 10


def test_a_document_longer_than_a_window_is_cut_and_every_target_scored_once():
    windows = DocumentWindows(stream_of(range(1, 31)), key=2, eos_id=EOS)
    for length in (1, 4, 10, 29, 30, 31, 40):
        scored = Counter()
        epoch = -(-30 // length)
        for number in range(epoch):
            row = windows.row(number, length)
            scored.update(row.targets[row.loss_mask].tolist())
        assert scored == Counter([*range(2, 31), EOS])


def test_the_mask_of_documents_belongs_to_their_targets():
    windows = DocumentWindows(stream_of(*DOCUMENTS, masked=True), key=2, eos_id=EOS)
    for number in range(50):
        row = windows.row(number, 12)
        assert all(target % 2 == 1 or target == EOS for target in row.targets[row.loss_mask])


def test_a_window_asked_for_first_is_the_one_asked_for_in_turn():
    for make in (lambda: StreamWindows(COUNTING, 3), lambda: DocumentWindows(stream_of(*DOCUMENTS), 3, EOS)):
        in_turn = make()
        rows = [in_turn.row(number, 12) for number in range(40)]
        for number in (39, 0, 17):
            for a, b in zip(make().row(number, 12), rows[number], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [1, 7, 100, 101, 500])
def test_held_out_windows_hold_every_target_once_in_order(length):
    rows = list(sequential_rows(COUNTING, length, EOS, max_tokens=10**9))
    assert all(row.ids.shape == (length,) for row in rows)
    assert np.concatenate([row.targets[row.loss_mask] for row in rows]).tolist() == [*range(1, 100), EOS]
    assert np.concatenate([row.ids[row.loss_mask] for row in rows]).tolist() == [EOS, *range(1, 100)]
    assert len(rows) == -(-100 // length)


def test_held_out_windows_stop_at_the_limit():
    rows = list(sequential_rows(COUNTING, 8, EOS, max_tokens=20))
    assert np.concatenate([row.targets[row.loss_mask] for row in rows]).tolist() == list(range(1, 21))


@pytest.mark.parametrize("length", [4, 12, 100])
def test_held_out_documents_come_whole_and_in_order_and_are_scored_as_in_training(length):
    stream = stream_of(*DOCUMENTS, masked=True)
    rows = list(document_rows(stream, length, EOS, max_tokens=10**9))
    scored = [int(t) for row in rows for t in row.targets[row.loss_mask]]
    assert scored == [t for d in DOCUMENTS for t in [*list(d)[1:], EOS] if t % 2 == 1 or t == EOS]
    trained = DocumentWindows(stream, key=2, eos_id=EOS)
    epoch = [trained.row(number, length) for number in range(trained.count(1, length))]
    assert sorted(int(t) for row in epoch for t in row.targets[row.loss_mask]) == sorted(scored)
    if length == 12:
        assert all(int(row.ids[0]) in {d[0] for d in DOCUMENTS} for row in rows)


def test_held_out_documents_stop_at_the_limit():
    rows = list(document_rows(stream_of(*DOCUMENTS), 12, EOS, max_tokens=15))
    assert {int(row.ids[0]) for row in rows} == {1, 101}  # 3 + 1 tokens, then 9 + 1 and 1 + 1; the next begins at 18
