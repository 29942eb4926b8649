"""A corpus: its batches, its mixture of sources, its held-out windows and what of it is scored."""

import math
from collections import Counter

import numpy as np
import pytest
from support.texts import PAIRS, decoded, held_out_targets, jsonl, lines, train_text

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.messages import EOS
from adaptive_lm.train.data import SourceConfig


def test_a_batch_is_windows_and_the_tokens_that_follow(write, corpus_of):
    corpus = corpus_of(write("a.txt", lines(200)))
    batch = corpus.batch(0, batch_size=4, length=32)
    assert batch.ids.shape == batch.targets.shape == batch.loss_mask.shape == (4, 32)
    assert (batch.ids.dtype, batch.targets.dtype, batch.loss_mask.dtype) == (np.int64, np.int64, np.bool_)
    np.testing.assert_array_equal(batch.ids[:, 1:], batch.targets[:, :-1])
    assert batch.loss_mask.all()
    ring = train_text(corpus).removeprefix(EOS) * 2
    assert all(
        decoded(corpus, [*row, target[-1]]) in ring for row, target in zip(batch.ids, batch.targets, strict=True)
    )


@pytest.mark.parametrize("pack", ["stream", "documents"])
def test_batches_need_no_memory_of_those_before(write, corpus_of, pack):
    """T15, T16: a resumed run sees the windows that the uninterrupted one would have seen."""
    source = write("a.jsonl", jsonl(PAIRS))
    in_turn = corpus_of(source, pack=pack)
    stream = [in_turn.batch(number * 2, 2, 24) for number in range(90)]
    resumed = corpus_of(source, pack=pack)
    for number in (89, 31, 0):
        for a, b in zip(resumed.batch(number * 2, 2, 24), stream[number], strict=True):
            np.testing.assert_array_equal(a, b)


def test_small_batches_are_the_rows_of_one_large_batch(write, corpus_of):
    """T40, T19: in batches of any sizes the windows come in the same order."""
    corpus = corpus_of(write("a.txt", lines(200)))
    large = corpus.batch(40, 8, 16)
    small = [corpus.batch(first, rows, 16) for first, rows in ((40, 3), (43, 1), (44, 4))]
    np.testing.assert_array_equal(large.ids, np.concatenate([batch.ids for batch in small]))


def test_batches_that_grow_never_repeat_a_window_of_an_epoch(write, corpus_of):
    corpus = corpus_of(write("a.txt", "".join(f"{n:04d}" for n in range(2000))), tokenizer="bytes")
    windows = corpus._windows[0].windows_per_epoch(16)
    rows, size = [], 1
    while len(rows) + size <= windows:
        rows += [tuple(row) for row in corpus.batch(len(rows), size, 16).ids.tolist()]
        size += 3
    assert len(set(rows)) == len(rows)
    assert len(rows) > windows / 2


def test_the_seed_chooses_the_order_and_nothing_else(write, corpus_of):
    source = write("a.txt", lines(200))
    one, same, other = (corpus_of(source, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.batch(12, 4, 16).ids, same.batch(12, 4, 16).ids)
    assert not np.array_equal(one.batch(12, 4, 16).ids, other.batch(12, 4, 16).ids)
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((0.2, 0.8), (0.2, 0.8)), ((3, 1), (0.75, 0.25)), ((0.9, None), (0.9, 0.1)), ((None, None), (0.5, 0.5))],
)
def test_weights_are_shares_of_the_windows(write, corpus_of, weights, shares):
    sources = [
        SourceConfig(path=write(f"{name}.txt", name * 1000), weight=weight)
        for name, weight in zip("ab", weights, strict=True)
    ]
    corpus = corpus_of(*sources)
    counts = Counter(
        decoded(corpus, row).replace(EOS, "")[0] for step in range(50) for row in corpus.batch(step * 8, 8, 16).ids
    )
    assert abs(counts["a"] - 400 * shares[0]) <= 1


def test_without_weights_every_token_comes_equally_often(write, corpus_of):
    corpus = corpus_of(write("a.txt", "a" * 10_000), write("b.txt", "b" * 30_000))
    assert corpus.weights == pytest.approx((0.25, 0.75), abs=1e-4)


def test_every_held_out_token_is_a_target_once_whatever_the_window(write, corpus_of):
    corpus = corpus_of(write("a.txt", lines(100)), write("b.jsonl", jsonl(PAIRS)))
    expected = held_out_targets(corpus, 1, 1)
    assert len(expected) == corpus.val_tokens
    for length, batch_size in [(7, 2), (16, 5), (10_000, 4)]:
        np.testing.assert_array_equal(held_out_targets(corpus, length, batch_size), expected)


def test_held_out_windows_are_packed_as_those_of_training(write, corpus_of):
    """A window that began inside a document would score tokens that training never scores."""
    corpus = corpus_of(write("b.jsonl", jsonl(PAIRS)), pack="documents")
    texts = [decoded(corpus, row) for batch in corpus.val_windows(64, 3) for row in batch.ids]
    assert texts
    assert all(text.startswith("User: What is") for text in texts)


def test_a_bound_on_held_out_tokens_takes_from_every_source(write, corpus_of):
    corpus = corpus_of(write("a.txt", "a" * 10_000), write("b.txt", "b" * 30_000))
    text = decoded(corpus, held_out_targets(corpus, max_tokens=400))
    assert text in ("a" * 101 + "b" * 300, "a" * 100 + "b" * 300)


@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_bits_per_byte_do_not_depend_on_the_tokenizer(write, corpus_of, kind):
    """A model that needs 3 bits for every byte of text has 3 bits per byte, however the text is cut into tokens."""
    text = lines(300, "é冬👩")
    corpus = corpus_of(write("a.txt", text), tokenizer=kind)
    targets = held_out_targets(corpus)
    total_nats = 3 * math.log(2) * len(text[int(len(text) * 0.9) :].encode())
    mean_loss = total_nats / len(targets)
    assert mean_loss / math.log(2) / corpus.val_bytes_per_token == pytest.approx(3)


def test_prompts_and_completions_read_as_conversations(write, corpus_of):
    corpus = corpus_of(write("a.jsonl", jsonl(PAIRS)))
    expected = "".join(f"User: {p['prompt']}\nAssistant: {p['completion']}{EOS}" for p in PAIRS[:36])
    assert train_text(corpus) == EOS + expected
    assert corpus.chat_template is not None
    assert "Assistant:" in corpus.chat_template
    assert all(batch.loss_mask.all() for batch in [corpus.batch(0, 4, 16)])


@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_loss_on_answers_scores_answers_and_their_end_and_nothing_else(write, corpus_of, pack, kind):
    corpus = corpus_of(write("a.jsonl", jsonl(PAIRS)), tokenizer=kind, loss_on="answers", pack=pack)
    scored = Counter()
    for step in range(40):
        batch = corpus.batch(step * 4, 4, 256)
        for targets, mask in zip(batch.targets, batch.loss_mask, strict=True):
            for run in "".join(decoded(corpus, [t]) if m else "\0" for t, m in zip(targets, mask, strict=True)).split(
                "\0"
            ):
                scored[run] += 1
    answers = {f" {p['completion']}{EOS}" for p in PAIRS}
    whole = {run for run in scored if run in answers}
    cut = {run for run in scored if run and run not in answers}
    assert len(whole) == 36
    if pack == "documents":
        assert not cut
    assert all(any(run in answer for answer in answers) for run in cut)
    targets = decoded(corpus, held_out_targets(corpus))
    assert targets == "".join(f" {p['completion']}{EOS}" for p in PAIRS[36:])


def test_bits_per_byte_of_answers_count_the_bytes_of_answers(write, corpus_of):
    corpus = corpus_of(write("a.jsonl", jsonl(PAIRS)), loss_on="answers")
    answers = [f" {p['completion']}" for p in PAIRS[36:]]
    assert corpus.val_bytes_per_token == pytest.approx(sum(map(len, answers)) / sum(len(a) + 1 for a in answers))


def test_plain_text_beside_answers_is_scored_whole(write, corpus_of):
    corpus = corpus_of(write("a.txt", lines(100)) + "@0.5", write("b.jsonl", jsonl(PAIRS)) + "@0.5", loss_on="answers")
    masks = [corpus.batch(0, 2, 64).loss_mask[row].mean() for row in range(2)]
    assert max(masks) == 1
    assert min(masks) < 0.6


def test_heldout_text_stops_between_characters(write, corpus_of):
    corpus = corpus_of(write("a.txt", "冬" * 1000))
    assert corpus.heldout_text(10) == "冬" * 3
    assert corpus.heldout_text(0) == ""


def test_too_little_text_for_a_window_gives_the_numbers_and_a_context_that_fits(write, corpus_of):
    corpus = corpus_of(write("a.txt", "x" * 100))
    with pytest.raises(
        UserError, match=r"a\.txt: 92 training tokens, but one window of context length 128 needs 129; .*=64"
    ):
        corpus.batch(0, 1, 128)
    corpus.batch(0, 1, 91)
    corpus.batch(0, 1, 64)
