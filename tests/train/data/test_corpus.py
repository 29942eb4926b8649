"""From --data to batches: the split, the windows, the mixture and what a person hears when it cannot be done."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adaptive_lm.train.data import SourceConfig
from adaptive_lm.train.data.chat import EOS
from adaptive_lm.train.errors import UserError

SHAKESPEARE = Path(__file__).resolve().parents[4] / "shared" / "data" / "shakespeare.txt"
PAIRS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {n % 9} and {n % 4}."} for n in range(40)]


def lines(count: int, word: str = "line") -> str:
    return "".join(f"{word} number {n} of the text\n" for n in range(count))


def jsonl(records: list[object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def decoded(corpus, tokens) -> str:
    return corpus.tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)


def train_text(corpus) -> str:
    """All training text, from one epoch of windows of one token."""
    (entry,) = corpus._entries
    return decoded(corpus, entry.train.tokens)


def held_out_targets(corpus, length=16, batch_size=3, **more):
    batches = list(corpus.val_windows(length, batch_size, **more))
    return np.concatenate([batch.targets[batch.loss_mask] for batch in batches])


def test_the_first_nine_tenths_train_and_the_rest_is_held_out_to_the_character(write, corpus_of):
    text = "é冬👩" * 333 + "x"  # 1000 characters, of two, three and four bytes
    corpus = corpus_of(write("a.txt", text))
    assert train_text(corpus) == f"{EOS}{text[:900]}{EOS}"
    assert decoded(corpus, held_out_targets(corpus)) == f"{text[900:]}{EOS}"
    assert corpus.heldout_text(10**6) == text[900:]


def test_of_each_file_the_last_part_is_held_out(write, corpus_of, tmp_path):
    write("a.txt", "a" * 100)
    write("b.txt", "b" * 50)
    corpus = corpus_of(str(tmp_path / "data"), val_fraction=0.2)
    assert train_text(corpus) == f"{EOS}{'a' * 80}{EOS}{'b' * 40}{EOS}"
    assert decoded(corpus, held_out_targets(corpus)) == f"{'a' * 20}{EOS}{'b' * 10}{EOS}"
    assert corpus.heldout_text(10**6) == f"{'a' * 20}{EOS}{'b' * 10}"


def test_of_records_the_last_documents_are_held_out(write, corpus_of):
    corpus = corpus_of(write("a.jsonl", jsonl([f"document {n}" for n in range(20)])))
    assert train_text(corpus) == EOS + "".join(f"document {n}{EOS}" for n in range(18))
    assert decoded(corpus, held_out_targets(corpus)) == f"document 18{EOS}document 19{EOS}"


def test_a_source_of_its_own_is_held_out_whole_and_the_others_train_whole(write, corpus_of):
    corpus = corpus_of(write("a.txt", "all of this trains"), val=write("b.txt", "all of this is held out"))
    assert train_text(corpus) == f"{EOS}all of this trains{EOS}"
    assert decoded(corpus, held_out_targets(corpus)) == f"all of this is held out{EOS}"


def test_held_out_text_that_also_trains_is_reported(write, corpus_of, said):
    corpus_of(write("a.txt", lines(20)), val=write("b.txt", lines(20)))
    assert [sentence for sentence in said if "b.txt is trained on as well as held out" in sentence]


@pytest.mark.parametrize("kind", ["bpe", "words", "chars"])
def test_the_vocabulary_is_learned_from_the_training_part_only(write, corpus_of, said, kind):
    corpus = corpus_of(write("a.txt", lines(90) + "zyxxyz ☃\n" * 60), tokenizer=kind, val_fraction=0.5)
    # The snow man is no token, and of the held-out word no piece was worth one.
    assert not any("☃" in token or "zy" in token for token in corpus.tokenizer.get_vocab())
    assert (len(said) == 1) == (kind != "bpe")


def test_unknown_held_out_tokens_are_counted_and_a_cure_is_named(write, corpus_of, said):
    corpus = corpus_of(write("a.txt", "a" * 95 + "bcdab"), tokenizer="chars")
    (sentence,) = said
    assert "4 of 11 held-out tokens (36.36%) are not in the vocabulary of the chars tokenizer" in sentence
    assert "bpe and bytes know everything" in sentence
    assert corpus.notes == (sentence,)


def test_a_batch_is_windows_and_the_tokens_that_follow(write, corpus_of):
    corpus = corpus_of(write("a.txt", lines(200)))
    batch = corpus.batch(0, 0, batch_size=4, length=32)
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
    stream = [in_turn.batch(step, micro, 2, 24, micros=3) for step in range(30) for micro in range(3)]
    resumed = corpus_of(source, pack=pack)
    for step, micro in [(29, 2), (10, 1), (0, 0)]:
        for a, b in zip(resumed.batch(step, micro, 2, 24, micros=3), stream[3 * step + micro], strict=True):
            np.testing.assert_array_equal(a, b)


def test_micro_batches_are_the_rows_of_one_large_batch(write, corpus_of):
    """T40."""
    corpus = corpus_of(write("a.txt", lines(200)))
    large = corpus.batch(5, 0, 8, 16)
    small = [corpus.batch(5, micro, 2, 16, micros=4) for micro in range(4)]
    np.testing.assert_array_equal(large.ids, np.concatenate([batch.ids for batch in small]))


def test_steps_and_micro_batches_never_repeat_a_window_of_an_epoch(write, corpus_of):
    corpus = corpus_of(write("a.txt", "".join(f"{n:04d}" for n in range(2000))), tokenizer="bytes")
    windows = corpus._windows[0].windows_per_epoch(16)
    rows = [
        tuple(row)
        for step in range(windows // 6)
        for micro in range(3)
        for row in corpus.batch(step, micro, 2, 16, micros=3).ids.tolist()
    ]
    assert len(set(rows)) == len(rows)


def test_a_micro_batch_beyond_their_number_is_a_mistake_of_ours(write, corpus_of):
    with pytest.raises(ValueError, match="pass the number of micro-batches per step as `micros`"):
        corpus_of(write("a.txt", lines(200))).batch(0, 1, 2, 16)


def test_the_seed_chooses_the_order_and_nothing_else(write, corpus_of):
    source = write("a.txt", lines(200))
    one, same, other = (corpus_of(source, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.batch(3, 0, 4, 16).ids, same.batch(3, 0, 4, 16).ids)
    assert not np.array_equal(one.batch(3, 0, 4, 16).ids, other.batch(3, 0, 4, 16).ids)
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
        decoded(corpus, row).replace(EOS, "")[0] for step in range(50) for row in corpus.batch(step, 0, 8, 16).ids
    )
    assert abs(counts["a"] - 400 * shares[0]) <= 1


def test_without_weights_every_token_comes_equally_often(write, corpus_of):
    corpus = corpus_of(write("a.txt", "a" * 10_000), write("b.txt", "b" * 30_000))
    assert corpus.weights == pytest.approx((0.25, 0.75), abs=1e-4)


def test_weights_that_leave_nothing_are_refused(write, corpus_of):
    with pytest.raises(UserError, match=r"add up to 1\.5, which leaves nothing for .*b\.txt"):
        corpus_of(write("a.txt", lines(9)) + "@1.5", write("b.txt", lines(9)))


def test_every_held_out_token_is_a_target_once_whatever_the_window(write, corpus_of):
    corpus = corpus_of(write("a.txt", lines(100)), write("b.jsonl", jsonl(PAIRS)))
    expected = held_out_targets(corpus, 1, 1)
    assert len(expected) == corpus.val_tokens
    for length, batch_size in [(7, 2), (16, 5), (10_000, 4)]:
        np.testing.assert_array_equal(held_out_targets(corpus, length, batch_size), expected)


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
    assert all(batch.loss_mask.all() for batch in [corpus.batch(0, 0, 4, 16)])


@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_loss_on_answers_scores_answers_and_their_end_and_nothing_else(write, corpus_of, pack, kind):
    corpus = corpus_of(write("a.jsonl", jsonl(PAIRS)), tokenizer=kind, loss_on="answers", pack=pack)
    scored = Counter()
    for step in range(40):
        batch = corpus.batch(step, 0, 4, 256)
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
    masks = [corpus.batch(0, 0, 2, 64).loss_mask[row].mean() for row in range(2)]
    assert max(masks) == 1
    assert min(masks) < 0.6


def test_loss_on_answers_without_answers_is_refused(write, corpus_of):
    with pytest.raises(UserError, match="loss_on is 'answers', but no record has an answer"):
        corpus_of(write("a.txt", lines(100)), loss_on="answers")


def test_a_chat_template_that_nothing_uses_is_reported(write, corpus_of, said):
    corpus = corpus_of(write("a.txt", lines(100)), chat_template="{{ messages }}")
    assert said == ["data.chat_template is not used: no record is a conversation"]
    assert corpus.chat_template is None


def test_an_end_of_text_in_a_text_is_not_one(write, corpus_of):
    corpus = corpus_of(write("a.txt", f"typed {EOS} " * 50))
    (entry,) = corpus._entries
    assert np.flatnonzero(entry.train.tokens == corpus.eos_id).tolist() == [0, len(entry.train.tokens) - 1]


def test_heldout_text_stops_between_characters(write, corpus_of):
    corpus = corpus_of(write("a.txt", "冬" * 1000))
    assert corpus.heldout_text(10) == "冬" * 3
    assert corpus.heldout_text(0) == ""


def test_the_digest_changes_with_content_tokenizer_and_settings_only(write, corpus_of):
    """T21."""
    source, same = write("a.jsonl", jsonl(PAIRS)), write("sub/b.jsonl", jsonl(PAIRS))
    digests = [
        corpus_of(source).digest,
        corpus_of(source, tokenizer="chars").digest,
        corpus_of(source, val_fraction=0.2).digest,
        corpus_of(source, loss_on="answers").digest,
        corpus_of(source, pack="documents").digest,
        corpus_of(source, source).digest,
        corpus_of(write("c.jsonl", jsonl(PAIRS[1:]))).digest,
        corpus_of(source, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert corpus_of(same).digest == digests[0]


def test_an_empty_file_is_refused_by_name_and_passed_over_in_a_folder(write, corpus_of, said, tmp_path):
    empty = write("a.txt", "")
    with pytest.raises(UserError, match=r"a\.txt is empty; expected text to train on"):
        corpus_of(empty)
    with pytest.raises(UserError, match=r"all 1 files of .* are empty"):
        corpus_of(str(tmp_path / "data"))
    write("b.txt", lines(100))
    corpus_of(str(tmp_path / "data"))
    assert said == [f"{empty} is empty; left out"]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"text": ""}\n'), ("a.csv", "text\n"), ("a.json", "[]")])
def test_records_without_text_are_refused(write, corpus_of, name, content):
    with pytest.raises(UserError, match=f"{name} holds no text in its records"):
        corpus_of(write(name, content))


def test_nothing_left_to_hold_out_is_refused(write, corpus_of):
    with pytest.raises(UserError, match=r"no held-out part is left .*a\.json: 8 bytes.*--val"):
        corpus_of(write("a.json", '["only"]'))


def test_too_little_text_for_a_window_gives_the_numbers_and_a_context_that_fits(write, corpus_of):
    corpus = corpus_of(write("a.txt", "x" * 100))
    with pytest.raises(
        UserError, match=r"a\.txt: 92 training tokens, but one window of context length 128 needs 129; .*=64"
    ):
        corpus.batch(0, 0, 1, 128)
    corpus.batch(0, 0, 1, 91)
    corpus.batch(0, 0, 1, 64)


def test_bad_input_is_named_through_the_whole_line(write, corpus_of):
    with pytest.raises(UserError, match=r"a\.txt, line 2: not UTF-8"):
        corpus_of(write("a.txt", b"fine\ncaf\xe9\n"))
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: none of the fields"):
        corpus_of(write("b.jsonl", '{"body": "x"}'))
    with pytest.raises(UserError, match=r"c\.jsonl, line 1: half of a surrogate pair \(\\ud83d at character 3\)"):
        corpus_of(write("c.jsonl", '"bad\\ud83d"'))


def test_the_builtin_texts_train(corpus_of):
    corpus = corpus_of("builtin:facts@0.5", "builtin:python-docs@0.5", tokenizer="bpe", vocab_size=600)
    assert corpus.chat_template is not None
    assert corpus.batch(0, 0, 2, 128).ids.shape == (2, 128)
    assert corpus.heldout_text(4096).startswith("User: ")


def test_progress_goes_from_nothing_to_all(write, corpus_of):
    from adaptive_lm.train.data import DataConfig, TokenizerConfig, prepare

    calls = []
    prepare(
        DataConfig(sources=(write("a.txt", lines(5000)),)),
        TokenizerConfig(kind="chars"),
        seed=0,
        progress=lambda what, done, total: calls.append((what, done, total)),
    )
    assert {what.split()[0] for what, _, _ in calls} == {"reading", "learning", "tokenising"}
    assert all(0 < done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.data
@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the text of Shakespeare is not beside the repository")
def test_shakespeare_is_split_where_published_figures_split_it(corpus_of):
    corpus = corpus_of(str(SHAKESPEARE), tokenizer="chars")
    assert corpus.vocab_size == 65 + 2
    assert corpus.train_tokens == 1_003_854 + 1
    assert corpus.val_tokens == 111_540 + 1
    assert corpus.heldout_text(12) == "?\n\nGREMIO:\nG"


def test_the_data_room_needs_no_torch_and_imports_heavy_libraries_only_when_used():
    code = (
        "import sys; import adaptive_lm.train.data; "
        "print([m for m in ('torch', 'pyarrow', 'datasets', 'jinja2', 'pydoc_data.topics') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
