"""Windows that are changed while they are read, and texts that take turns with rewritten ones."""

import json

import numpy as np
import pytest
from support.texts import PAIRS, decoded, held_out_targets, jsonl, lines

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import SourceConfig
from adaptive_lm.train.data.augment.config import AugmentConfig
from adaptive_lm.train.data.augment.variants import VariantWindows, series
from adaptive_lm.train.data.augment.word_noise import Noise, Words
from adaptive_lm.train.data.cache import Stream
from adaptive_lm.train.data.tokenizers.ids import eos_id
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.data.windows.batches import Row, StreamWindows

SETTINGS = {
    "dropout": {"word_dropout": 0.3},
    "shuffle": {"span_shuffle": 0.8},
    "synonyms": {"synonyms": "TABLE", "synonym_share": 0.9},
    "templates": {"templates": "builtin"},
}
TABLE = {"line": ["row", "string"], "number": ["figure"], "question": ["query"]}
QUESTIONS = [{"prompt": f"What is question {n}?", "completion": f"It is line {n}."} for n in range(40)]


@pytest.fixture
def settings(write):
    """Return the settings of a kind of augmentation, after writing the table of synonyms."""
    table = write("table.json", json.dumps(TABLE))

    def settings(kind, **more):
        return {name: table if value == "TABLE" else value for name, value in (SETTINGS[kind] | more).items()}

    return settings


def windows(corpus, steps, length=24):
    return [corpus.batch(2 * step, 2, length) for step in range(steps)]


def same(left, right):
    return all(
        np.array_equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_changed_window_is_a_function_of_its_number(write, corpus_of, settings, kind, pack):
    """T15, T16: a window depends only on its number, so a resumed run reads the same windows.

    Another seed, and the next epoch, give other windows.
    """
    source = write("a.jsonl", jsonl(QUESTIONS))
    corpus = corpus_of(source, pack=pack, augment=settings(kind))
    seen = windows(corpus, 90)
    resumed = corpus_of(source, pack=pack, augment=settings(kind))
    assert same([resumed.batch(2 * step, 2, 24) for step in (89, 3, 40)], [seen[89], seen[3], seen[40]])
    assert not same(windows(corpus_of(source, pack=pack), 90), seen)
    assert not same(windows(corpus_of(source, pack=pack, augment=settings(kind), seed=1), 90), seen)


@pytest.mark.parametrize("kind", SETTINGS)
def test_held_out_text_is_never_changed(write, corpus_of, settings, kind):
    source = write("a.jsonl", jsonl(QUESTIONS))
    plain, changed = corpus_of(source, tokenizer="bytes"), corpus_of(source, tokenizer="bytes", augment=settings(kind))
    np.testing.assert_array_equal(held_out_targets(plain, 24), held_out_targets(changed, 24))
    assert plain.heldout_text(10_000) == changed.heldout_text(10_000)
    assert plain.val_tokens == changed.val_tokens


def test_the_digest_changes_with_the_settings_and_the_table(write, corpus_of, settings):
    source = write("a.jsonl", jsonl(QUESTIONS))
    plain = corpus_of(source).digest
    assert corpus_of(source, augment={"variants": 9}).digest == plain, "off is off"
    found = [plain, *(corpus_of(source, augment=settings(kind)).digest for kind in SETTINGS)]
    write("table.json", json.dumps({**TABLE, "line": ["queue"]}))
    found.append(corpus_of(source, augment=settings("synonyms")).digest)
    assert len(set(found)) == len(found)


def test_dropout_changes_what_is_seen_and_not_what_is_asked_for(write, corpus_of):
    text = write("a.txt", lines(300))
    plain = windows(corpus_of(text), 40, 64)
    dropped = windows(corpus_of(text, augment={"word_dropout": 0.2}), 40, 64)
    for before, after in zip(plain, dropped, strict=True):
        np.testing.assert_array_equal(before.targets, after.targets)
        np.testing.assert_array_equal(before.loss_mask, after.loss_mask)
    replaced = np.mean([a.ids != b.ids for a, b in zip(plain, dropped, strict=True)])
    assert 0.15 < replaced < 0.2, "some are replaced by themselves"


def test_each_window_is_changed_in_another_way(write, corpus_of):
    """The windows of a text of one letter differ only by the random draw; a second epoch is drawn anew."""
    text = write("a.txt", "x" * 400 + "y")
    corpus = corpus_of(text, tokenizer="chars", augment={"word_dropout": 0.5, "unknown_word": True})
    rows = {tuple(corpus._windows[0].row(number, 100).ids.tolist()) for number in range(9)}
    assert len(rows) == 9


def test_without_settings_the_order_is_what_it_was(write, corpus_of):
    """A run that began before augmentation existed continues unchanged."""
    stream = corpus_of(write("a.txt", lines(50)))._entries[0].train
    made, plain = series([stream], 5, "stream", 0, None), StreamWindows(stream, 5)
    assert all(np.array_equal(made.row(number, 16).ids, plain.row(number, 16).ids) for number in range(20))


def test_dropout_by_the_unknown_word(write, corpus_of):
    text = write("a.txt", lines(300))
    corpus = corpus_of(text, tokenizer="words", augment={"word_dropout": 0.5, "unknown_word": True})
    batch, plain = corpus.batch(0, 4, 32), corpus_of(text, tokenizer="words").batch(0, 4, 32)
    unknown = corpus.tokenizer.token_to_id("<unk>")
    assert set(batch.ids[batch.ids != plain.ids].tolist()) == {unknown}
    assert 0.4 < np.mean(batch.ids == unknown) < 0.6
    with pytest.raises(UserError, match=r"has no unknown token, because it can write any text; leave it out"):
        corpus_of(text, tokenizer="bytes", augment={"word_dropout": 0.5, "unknown_word": True})


@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("tokenizer", ["bytes", "words", "bpe"])
def test_special_tokens_padding_and_the_mask_stay(write, corpus_of, tokenizer, pack):
    source = write("a.jsonl", jsonl(PAIRS))
    options = {"tokenizer": tokenizer, "pack": pack, "loss_on": "answers"}
    options |= {"vocab_size": 300} if tokenizer == "bpe" else {}
    noise = {"word_dropout": 0.9, "span_shuffle": 1.0}
    plain, changed = corpus_of(source, **options), corpus_of(source, augment=noise, **options)
    differ = 0
    for before, after in zip(windows(plain, 60, 40), windows(changed, 60, 40), strict=True):
        np.testing.assert_array_equal(before.loss_mask, after.loss_mask)
        np.testing.assert_array_equal(before.ids == plain.eos_id, after.ids == plain.eos_id)
        np.testing.assert_array_equal(before.targets[before.loss_mask], after.targets[before.loss_mask])
        differ += int((before.targets != after.targets).sum())
    assert differ, "the words of the questions change places"


def noise_of(**config):
    tokenizer = byte_tokenizer()
    stream = Stream(np.arange(256), None, np.zeros(1, np.uint64))
    return Noise(AugmentConfig(**config), Words(tokenizer), stream, None), eos_id(tokenizer)


def row_of_text(text, eos=256):
    tokens = np.array([eos if byte == 0 else byte for byte in text.encode()], dtype=np.int64)
    return Row(tokens[:-1], tokens[1:], np.ones(len(tokens) - 1, bool))


def read(row):
    return "".join("|" if token == 256 else chr(token) for token in [row.ids[0], *row.targets])


def test_a_shuffle_moves_whole_words_inside_their_span():
    noise, _ = noise_of(span_shuffle=1.0, span_words=3, leave_code=False)
    text = "zero one two three four five six\nnew line here\0other old document"
    for key in range(30):
        row = noise.row(row_of_text(text), key)
        np.testing.assert_array_equal(row.ids[1:], row.targets[:-1], "ids and targets are one text")
        first, line, document = *read(row).partition("|")[0].split("\n"), read(row).partition("|")[2]
        words = first.split(" ")
        assert words[0] == "zero", "it may have begun before the window"
        assert sorted(words[1:4]) == ["one", "three", "two"]
        assert sorted(words[4:]) == ["five", "four", "six"]
        assert line in ("new line here", "new here line"), "what no space stands before stays"
        assert document in ("other old document", "other document old")
    assert len({read(noise.row(row_of_text(text), key)) for key in range(30)}) > 20


def test_code_is_left_alone_beside_prose():
    noise, _ = noise_of(span_shuffle=1.0, word_dropout=0.5)
    code = "def f(x):\n    y = g(x)\n    return y\n"
    text = f"It was a dark night and nobody slept.\0{code}\0Nobody came home that night either."
    row = noise.row(row_of_text(text), 3)
    begin = text.index(code)
    assert read(row)[begin : begin + len(code)] == code
    assert bytes(row.ids[begin : begin + len(code)].tolist()).decode() == code
    assert read(row)[:begin] != text[:begin].replace("\0", "|")
    loose, _ = noise_of(span_shuffle=1.0, word_dropout=0.5, leave_code=False)
    assert bytes(loose.row(row_of_text(text), 3).ids[begin : begin + len(code)].tolist()) != code.encode()


def test_files_named_as_code_are_left_alone(write, corpus_of, settings):
    prose = lines(200)
    augment = settings("synonyms", word_dropout=0.5)
    changed = corpus_of(write("notes.txt", prose), augment=augment)
    left = corpus_of(write("notes.py.txt", prose), augment=augment)
    assert same(windows(left, 200), windows(corpus_of(write("notes.py.txt", prose)), 200)), "in all variants"
    assert not same(windows(changed, 20), windows(left, 20))


class Counted:
    """Windows whose content is their number, `size` in an epoch."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def row(self, number, length):
        return (self.name, number)

    def count(self, epochs, length):
        return self.size * epochs


def test_variants_take_turns_epoch_by_epoch_and_lose_no_window():
    series = VariantWindows([Counted("a", 3), Counted("b", 2), Counted("c", 0)])
    found = [series.row(number, 8) for number in range(10)]
    assert found == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("a", 3), ("a", 4), ("a", 5), ("b", 2), ("b", 3)]
    assert [series.count(epochs, 8) for epochs in range(1, 6)] == [3, 5, 5, 8, 10]
    assert VariantWindows([Counted("a", 3), Counted("b", 2)]).row(9, 8) == ("b", 3), "asked out of order"


def test_the_first_epoch_is_the_text_itself(write, corpus_of, settings):
    source = write("a.jsonl", jsonl(QUESTIONS))
    plain, changed = corpus_of(source), corpus_of(source, augment=settings("templates"))
    epoch = plain._windows[0].count(1, 24)
    assert same(windows(plain, epoch // 2), windows(changed, epoch // 2))
    assert "Can you tell me:" in decoded(changed, np.concatenate([b.ids.ravel() for b in windows(changed, 8 * epoch)]))


def test_a_source_may_have_settings_of_its_own(write, corpus_of):
    text = lines(200)
    sources = (write("a.txt", text), SourceConfig(path=write("b.txt", text), augment=AugmentConfig()))
    corpus = corpus_of(*sources, augment={"word_dropout": 0.5})
    plain = corpus_of(*sources)
    differ = {0: 0, 1: 0}
    for number in range(40):
        source, place = corpus._deal(number, 24)
        rows = [each._windows[source].row(place, 24).ids for each in (corpus, plain)]
        differ[source] += int((rows[0] != rows[1]).sum())
    assert differ[0] > 0
    assert differ[1] == 0


def test_stages_count_the_epochs_of_rewritten_text(write, corpus_of, settings):
    """An epoch of the second variant has other windows than the first, and the next stage begins after it."""
    first = SourceConfig(path=write("a.jsonl", jsonl(QUESTIONS)), epochs=3)
    second = SourceConfig(path=write("b.txt", lines(100)), epochs=1)
    corpus = corpus_of(first, second, augment=settings("templates"))
    before = corpus._windows[0].count(3, 24)
    assert corpus._deal(before - 1, 24) == (0, before - 1)
    assert corpus._deal(before, 24) == (1, 0)
    assert corpus.total_windows(24) == before + corpus._windows[1].count(1, 24)
