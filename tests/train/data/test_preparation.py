"""Preparation: the cut of the text, the text of the vocabulary, and the errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.texts import PAIRS, decoded, held_out_targets, jsonl, lines, train_text

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.messages import EOS
from adaptive_lm.train.data import DataConfig, TokenizerConfig, prepare

SHAKESPEARE = Path(__file__).resolve().parents[4] / "shared" / "data" / "shakespeare.txt"


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


def test_held_out_text_is_looked_up_in_the_folder_and_loses_its_markers_too(write, corpus_of, tmp_path):
    write("a.json", json.dumps([f"to train {n} </s>" for n in range(9)]))
    write("b.json", json.dumps(["to hold out </s>"]))
    corpus = corpus_of("a.json", val="b.json", dir=str(tmp_path / "data"), end_marker="</s>")
    assert decoded(corpus, held_out_targets(corpus)) == f"to hold out{EOS}"


def test_a_source_of_its_own_is_held_out_whole_and_the_others_train_whole(write, corpus_of):
    corpus = corpus_of(write("a.txt", "all of this trains"), val=write("b.txt", "all of this is held out"))
    assert train_text(corpus) == f"{EOS}all of this trains{EOS}"
    assert decoded(corpus, held_out_targets(corpus)) == f"all of this is held out{EOS}"


def test_held_out_text_that_also_trains_is_reported(write, corpus_of, said):
    corpus = corpus_of(write("a.txt", lines(20)), val=write("b.txt", lines(20)))
    assert [sentence for sentence in said if "b.txt is trained on as well as held out" in sentence]
    assert corpus.val_is_trained_on
    assert not corpus_of(write("a.txt", lines(20)), val=write("c.txt", lines(21))).val_is_trained_on
    assert not corpus_of(write("a.txt", lines(20))).val_is_trained_on


@pytest.mark.parametrize("kind", ["bpe", "words", "chars"])
def test_the_vocabulary_is_learned_from_the_training_part_only(write, corpus_of, said, kind):
    corpus = corpus_of(write("a.txt", lines(90) + "zyxxyz ☃\n" * 60), tokenizer=kind, val_fraction=0.5)
    # The snow man is no token, and of the held-out word no piece was worth one.
    assert not any("☃" in token or "zy" in token for token in corpus.tokenizer.get_vocab())
    assert sum("held-out tokens" in note for note in said) == (kind != "bpe")


def test_unknown_held_out_tokens_are_counted_and_a_cure_is_named(write, corpus_of, said):
    corpus = corpus_of(write("a.txt", "a" * 95 + "bcdab"), tokenizer="chars")
    (sentence,) = said
    assert "4 of 11 held-out tokens (36.36%) are not in the vocabulary of the chars tokenizer" in sentence
    assert "bpe and bytes can write any text" in sentence
    assert corpus.notes == (sentence,)


def test_weights_that_leave_nothing_are_refused(write, corpus_of):
    with pytest.raises(UserError, match=r"add up to 1\.5, which leaves nothing for .*b\.txt"):
        corpus_of(write("a.txt", lines(9)) + "@1.5", write("b.txt", lines(9)))


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
    assert corpus.batch(0, 2, 128).ids.shape == (2, 128)
    assert corpus.heldout_text(4096).startswith("User: ")


def test_progress_goes_from_nothing_to_all(write, corpus_of):
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
