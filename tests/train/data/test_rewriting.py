"""Synonyms, templates, and what counts as code."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.texts import decoded, jsonl, lines

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data.augment.codelike import looks_like_code, named_as_code, paragraphs
from adaptive_lm.train.data.augment.config import AugmentConfig
from adaptive_lm.train.data.augment.rewrite import BUILTIN_TEMPLATES, Rewriter, read_templates
from adaptive_lm.train.data.augment.synonyms import Synonyms

TABLE = {"big": ["large", "huge"], "river": "stream"}
QUESTIONS = [{"prompt": f"Where is the big river {n}?", "completion": f"The big river {n} is here."} for n in range(40)]
CODE = """\
import os


def run(path: str) -> int:
    big = os.stat(path).st_size  # the big river
    return big
"""


def rewriter_of(tmp_path, variant=1, known=lambda text: True, templates=(), **config):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    config = AugmentConfig(**{"synonyms": str(path), "synonym_share": 1.0} | config)
    return Rewriter(config, Synonyms(config.synonyms), templates, known, 5, variant)


def all_train_text(corpus):
    """Two rounds of all variants."""
    count = corpus._windows[0].count(10, 64)
    return decoded(corpus, np.concatenate([corpus._windows[0].row(number, 64).ids for number in range(count)]))


def test_words_are_replaced_with_their_capitals(tmp_path):
    made = {rewriter_of(tmp_path, variant).text("The BIG river. Big Rivers are bigger.", 1) for variant in range(1, 20)}
    assert made == {f"The {one.upper()} stream. {two.capitalize()} Rivers are bigger."
                    for one in ("large", "huge") for two in ("large", "huge")}  # fmt: skip


def test_the_share_of_words_that_are_replaced(tmp_path):
    text = "big " * 1000
    for share in (0.1, 0.5):
        words = rewriter_of(tmp_path, synonym_share=share).text(text, 1).split()
        assert abs(words.count("big") / 1000 - (1 - share)) < 0.05
        assert 0.35 < words.count("huge") / (1000 - words.count("big")) < 0.65


def test_a_synonym_that_the_tokenizer_does_not_know_is_not_taken(tmp_path):
    asked = []
    rewriter = rewriter_of(tmp_path, known=lambda text: asked.append(text) or text.strip() == "huge")
    assert rewriter.text("A big river.", 1) == "A huge river."
    assert " huge" in asked, "with the space before it, as it will be tokenised"


def test_words_tokenizers_never_meet_an_unknown_synonym(write, corpus_of):
    text = "the big river runs to the huge sea\n" * 200
    table = write("t.json", json.dumps(TABLE))
    corpus = corpus_of(write("a.txt", text), tokenizer="words", augment={"synonyms": table, "synonym_share": 1.0})
    made = all_train_text(corpus)
    assert "<unk>" not in made
    assert "the huge river" in made


def test_only_what_the_user_says_is_rewritten_and_answers_are_scored_as_they_were(write, corpus_of):
    """The loss mask is right in every variant: what is scored is answers, whole, and nothing else."""
    source = write("a.jsonl", jsonl(QUESTIONS))
    table = write("t.json", json.dumps(TABLE))
    augment = {"synonyms": table, "synonym_share": 1.0, "templates": "builtin"}
    corpus = corpus_of(source, loss_on="answers", pack="documents", augment=augment)
    seen = set()
    for number in range(corpus._windows[0].count(5, 200)):
        row = corpus._windows[0].row(number, 200)
        seen.add(decoded(corpus, row.ids).partition(" river")[0].rpartition("User: ")[2])
        said = decoded(corpus, row.targets[row.loss_mask]).split("<|endoftext|>")
        assert all(one == "" or (one.startswith(" The big river ") and one.endswith(" is here.")) for one in said), said
    assert any("large" in one or "huge" in one for one in seen)
    assert any("Can you tell me:" in one for one in seen)


def test_questions_in_plain_records_are_asked_in_other_words(tmp_path):
    rewriter = rewriter_of(tmp_path, templates=("Say: {question}",))
    assert rewriter.record("User: How big is it? Assistant: It is big.", 1) == (
        "User: Say: How large is it? Assistant: It is big."
    ) or rewriter.record("User: How big is it? Assistant: It is big.", 1) == (
        "User: Say: How huge is it? Assistant: It is big."
    )
    assert rewriter.record("The river.", 1) == "The stream."


def test_a_template_whose_words_are_unknown_is_left_out(write, corpus_of, said, tmp_path):
    tokenizer = corpus_of(write("b.txt", "x " + lines(50)), tokenizer="words").tokenizer
    path = tmp_path / "own.json"
    path.write_text(tokenizer.to_str())
    records = write("q.jsonl", jsonl([{"prompt": f"line number {n}", "completion": "text"} for n in range(20)]))
    templates = write("t.txt", "number {question}\nPronounce: {question}\n")
    corpus = corpus_of(records, tokenizer=str(path), augment={"templates": templates, "variants": 1})
    assert any("1 of 2 templates" in one for one in said)
    assert "Pronounce" not in all_train_text(corpus)


def test_a_vocabulary_of_words_learns_those_of_the_templates(write, corpus_of, said):
    corpus = corpus_of(write("q.jsonl", jsonl(QUESTIONS)), tokenizer="words", augment={"templates": "builtin"})
    assert all(corpus.tokenizer.token_to_id(word) is not None for word in (" Please", " explain", " Here"))
    assert not any("templates" in one for one in said)


def test_settings_without_an_effect_are_said_to_have_none(write, corpus_of, said):
    corpus_of(write("a.txt", lines(100)), augment={"templates": "builtin"})
    assert any("data.augment.templates change nothing" in one for one in said)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", "[1, 2]", "holds a list, expected an object"),
        ("t.json", '{"big": 3}', "'big' has 3"),
        ("t.json", "{", "is not JSON"),
        ("t.tsv", "", "holds no synonyms"),
        ("t.csv", "big,large", "has the extension '.csv'"),
        ("t.json", b"\xff", "not UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused_in_words(write, corpus_of, name, content, words):
    with pytest.raises(UserError, match=words):
        Synonyms(write(name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.tsv", "# a note\nbig\tlarge\thuge\nRiver\tstream\n"), ("t.yaml", "big: [large, huge]\nriver: stream\n"),
     ("t.json", json.dumps(TABLE))],
)  # fmt: skip
def test_a_table_in_every_form(write, name, content):
    synonyms = Synonyms(write(name, content))
    assert synonyms.replace("river", 1.0, 0, lambda text: True) == "stream"
    assert synonyms.digest == Synonyms(write("other.json", json.dumps({**TABLE, "big": ["large", "huge"],
                                                                       "river": ["stream"]}))).digest  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.txt", "Say it", r"has \{question\} 0 times"),
        ("t.txt", "", "no list of templates"),
        ("t.yaml", "a: b", "no list"),
        ("t.json", '["{question}{question}"]', r"has \{question\} 2 times"),
    ],
)
def test_templates_that_are_none_are_refused_in_words(write, name, content, words):
    with pytest.raises(UserError, match=words):
        read_templates(write(name, content))


@pytest.mark.parametrize(
    ("name", "code"),
    [("main.py", True), ("train.py.txt", True), ("main.py.gz", True), ("a.TS", True), ("a.json", False),
     ("a.json.gz", False), ("a.txt", False), ("README", False), ("a.b.md", False)],
)  # fmt: skip
def test_a_file_is_code_by_its_name(name, code):
    assert named_as_code(name) == code


def test_a_missing_file_is_named_with_its_setting(tmp_path):
    with pytest.raises(UserError, match=r"data\.augment\.synonyms: cannot read .*nowhere\.tsv: No such file"):
        Synonyms(str(tmp_path / "nowhere.tsv"))
    with pytest.raises(UserError, match=r"data\.augment\.templates"):
        read_templates(str(tmp_path / "nowhere.txt"))


class WordNet:
    """The part of nltk.corpus.wordnet that is used; `missing` as where the corpus was never fetched."""

    def __init__(self, missing=False):
        self.missing = missing

    def ensure_loaded(self):
        if self.missing:
            raise LookupError("Resource wordnet not found")

    def get_version(self):
        return "3.0"

    def synsets(self, word):
        lemmas = {"big": ["big", "large"], "a": ["angstrom"], "sea": ["body_of_water", "sea"]}.get(word, [])
        return [SimpleNamespace(lemmas=lambda: [SimpleNamespace(name=lambda one=one: one) for one in lemmas])]


def test_wordnet_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nltk.corpus", SimpleNamespace(wordnet=WordNet()))
    synonyms = Synonyms("wordnet")
    assert synonyms.replace("A big sea", 1.0, 0, lambda text: True) == "A large body of water"
    assert synonyms.digest == "wordnet 3.0"


def test_wordnet_is_never_fetched_behind_the_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nltk.corpus", SimpleNamespace(wordnet=WordNet(missing=True)))
    with pytest.raises(UserError, match=r"python -m nltk\.downloader wordnet"):
        Synonyms("wordnet")
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(UserError, match=r'pip install "adaptive-lm\[augment\]"'):
        Synonyms("wordnet")


def test_code_in_prose_is_left_and_the_prose_is_not(tmp_path):
    text = f"The big river.\n\n{CODE}\n\nIt is big.\n\n```\nbig\n\nbig\n```\n\nSo big."
    made = rewriter_of(tmp_path).text(text, 1)
    assert CODE.split("\n\n\n")[1] in made
    assert "```\nbig\n\nbig\n```" in made
    assert "The big" not in made
    assert "is big" not in made
    assert "So big" not in made
    assert rewriter_of(tmp_path).text(CODE, 1) == CODE
    assert "big" not in rewriter_of(tmp_path, leave_code=False).text(CODE, 1)


@pytest.mark.parametrize(
    "text",
    [CODE, "for (int i = 0; i < n; i++) {\n  total += i;\n}", "x = 1", "const a = require('b');", '{"a": 1,\n "b": 2}',
     "<div class='a'>\n<p>\n</p>\n</div>", ">>> print(1)\n1", "#include <stdio.h>\nint main() {\n}", "```\nplain\n```"],
)  # fmt: skip
def test_code_is_recognised(text):
    assert looks_like_code(text)


@pytest.mark.parametrize(
    "text",
    ["How do mountains form?", "From the sea (the old one) came nothing; not a wave.",
     "ROMEO:\nBut, soft! what light through yonder window breaks;\nIt is the east, and Juliet is the sun.",
     "import duties rose in 1890, and nobody returned.", "", "For all that, I return\nto the class of 1990\nwith joy",
     "1. Cut the onion.\n2. Fry it.\n3. Add: salt, pepper and oil."],
)  # fmt: skip
def test_prose_is_no_code(text):
    assert not looks_like_code(text)


def test_the_builtin_texts_of_prose_are_no_code(write):
    from adaptive_lm.train.data.builtin import builtin_records

    assert not any(looks_like_code(text) for record in builtin_records("facts") for text in record.values())


def test_a_name_that_says_code():
    assert named_as_code("src/train.py.txt")
    assert not named_as_code("notes.txt")
    assert not named_as_code("train.pyramid.md")


def test_paragraphs_join_to_the_text():
    text = f"a\n\n \nb\n{CODE}\n\n\nc"
    assert "".join(piece for piece, _ in paragraphs(text)) == text


def test_the_builtin_templates_hold_the_question_once():
    assert all(one.count("{question}") == 1 for one in BUILTIN_TEMPLATES)
