"""The cache: text is tokenised once, written whole or not at all, and refused if it is damaged."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import build
from adaptive_lm.train.data import cache as module
from adaptive_lm.train.data.sources import scan
from adaptive_lm.train.system.cache_folder import cache_folder

TEXT = "".join(f"line number {n} of the text\n" for n in range(500))


@pytest.fixture
def tokenised(monkeypatch):
    """Count the calls of the tokenizer."""
    calls = []
    real = build.write_entry
    monkeypatch.setattr(
        "adaptive_lm.train.data.part_tokenizer.write_entry",
        lambda *args, **more: (calls.append(1), real(*args, **more)),
    )
    return calls


def entry_folder(cache: Path) -> Path:
    (folder,) = (cache / "tokens").iterdir()
    return folder


def test_the_same_text_is_tokenised_once_wherever_it_lies(write, corpus_of, tokenised):
    first = corpus_of(write("a.txt", TEXT), tokenizer="bpe")
    second = corpus_of(write("elsewhere/b.txt", TEXT), tokenizer="bpe")
    assert len(tokenised) == 1
    np.testing.assert_array_equal(first.batch(2, 2, 16).ids, second.batch(2, 2, 16).ids)
    corpus_of(write("a.txt", TEXT + "more"), tokenizer="bpe")
    corpus_of(write("elsewhere/b.txt", TEXT), tokenizer="chars")
    assert len(tokenised) == 3


def test_tokens_are_mapped_and_not_loaded(write, corpus_of):
    (entry,) = corpus_of(write("a.txt", TEXT))._entries
    assert isinstance(entry.train.tokens, np.memmap)
    assert entry.train.tokens.dtype == np.uint16
    assert entry.train.mask is None  # nothing to mask, nothing stored


def test_a_vocabulary_above_65536_takes_four_bytes(write, corpus_of):
    from tokenizers import Tokenizer, models

    vocab = {"line": 70_000, "?": 0, **{f"word{n}": n for n in range(1, 70_000)}}
    path = write("tokenizer.json", Tokenizer(models.WordLevel(vocab, unk_token="?")).to_str())  # noqa: S106 - no password
    (entry,) = corpus_of(write("a.json", json.dumps(["line"] * 20)), tokenizer=path)._entries
    assert entry.train.tokens.dtype == np.uint32
    assert entry.train.tokens[1] == 70_000


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda f: (f / "train.tokens").write_bytes((f / "train.tokens").read_bytes()[:-2]),
            "train.tokens has .* bytes, expected",
        ),
        (lambda f: flip(f / "train.tokens"), "train.tokens has the digest"),
        (lambda f: flip(f / "val.docs"), "val.docs has the digest"),
        (lambda f: flip(f / "heldout.txt"), "heldout.txt has the digest"),
        (lambda f: (f / "val.tokens").unlink(), "No such file"),
        (lambda f: (f / "entry.json").write_text("{}"), "'version'"),
        (lambda f: (f / "entry.json").write_text('{"vers'), "Unterminated"),
    ],
    ids=["truncated", "bit", "bit-in-docs", "bit-in-text", "missing", "empty-header", "truncated-header"],
)
def test_a_damaged_entry_is_named_on_stderr_and_made_again(write, corpus_of, cache, tokenised, capsys, damage, reason):
    source = write("a.txt", TEXT)
    before = corpus_of(source).batch(0, 4, 16)
    damage(entry_folder(cache))
    after = corpus_of(source).batch(0, 4, 16)
    assert len(tokenised) == 2
    np.testing.assert_array_equal(before.ids, after.ids)
    assert re.search(
        rf"the tokenised text in .* is damaged \(.*{reason}.*\); tokenising it again", capsys.readouterr().err
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_tokenizer_in_the_cache_is_made_again(write, corpus_of, cache, said):
    source = write("a.txt", TEXT)
    before = corpus_of(source, tokenizer="bpe").tokenizer_json()
    (path,) = (cache / "tokenizers").iterdir()
    path.write_text(path.read_text()[:100])
    assert corpus_of(source, tokenizer="bpe").tokenizer_json() == before
    assert "training the tokenizer again" in said[0]


def test_an_entry_without_its_header_was_never_finished(write, corpus_of, cache, tokenised):
    source = write("a.txt", TEXT)
    corpus_of(source)
    (entry_folder(cache) / "entry.json").unlink()
    shutil.move(entry_folder(cache), cache / "tokens" / ".writing-killed")
    corpus_of(source)
    assert len(tokenised) == 2


def test_what_killed_writers_left_is_removed_after_a_day(write, corpus_of, cache):
    for name, age in [("old", 25 * 3600), ("young", 3600)]:
        folder = cache / "tokens" / f".writing-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    corpus_of(write("a.txt", TEXT))
    assert [p.name for p in (cache / "tokens").glob(".writing-*")] == [".writing-young"]


PREPARE = """
import hashlib, sys
from adaptive_lm.train.data import DataConfig, TokenizerConfig, prepare
corpus = prepare(DataConfig(sources=(sys.argv[1],)), TokenizerConfig(kind="bpe", vocab_size=400), seed=0)
print(hashlib.sha256(corpus.batch(0, 4, 64).ids.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_several_writers_at_once_end_with_one_whole_entry(write, cache):
    source = write("a.txt", TEXT * 20)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    said = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 6
    assert {err for _, err in said} == {""}
    assert len({out for out, _ in said}) == 1
    assert [p.name for p in (cache / "tokens").iterdir() if p.name.startswith(".")] == []
    assert module.open_entry(entry_folder(cache)) is not None


def test_the_second_of_two_writers_takes_what_the_first_has_written(write, corpus_of, cache, monkeypatch):
    source = write("a.txt", TEXT)
    corpus_of(source)
    kept = entry_folder(cache)
    shutil.copytree(kept, cache / "first")
    shutil.rmtree(kept)
    real = build.write_entry

    def overtaken(place, *args, **more):
        real(place, *args, **more)
        shutil.move(cache / "first", kept)

    monkeypatch.setattr("adaptive_lm.train.data.part_tokenizer.write_entry", overtaken)
    corpus_of(source)
    assert [p.name for p in (cache / "tokens").iterdir()] == [kept.name]


def test_a_full_disk_names_the_folder_and_the_bytes_needed(write, corpus_of, cache, monkeypatch):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.EntryWriter, "_write", full)
    with pytest.raises(
        UserError, match=r"the disk is full: the tokenised text needs about [\d,]+ bytes in .*tokens; .*cache_dir"
    ):
        corpus_of(write("a.txt", TEXT))
    assert list((cache / "tokens").iterdir()) == []


def test_a_disk_that_will_be_full_is_noticed_before_writing(write, corpus_of, cache, monkeypatch):
    monkeypatch.setattr("adaptive_lm.train.data.part_tokenizer.free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match=r"needs about 1,\d\d\d,\d\d\d bytes in .*, where 1,000 are free"):
        corpus_of(write("a.txt", TEXT))


def test_a_cache_that_cannot_be_written_is_named(write, corpus_of):
    blocked = write("not-a-folder", "x")
    with pytest.raises(
        UserError, match=r"cannot write the tokenised text to .*not-a-folder.*: Not a directory; choose another"
    ):
        corpus_of(write("a.txt", TEXT), cache_dir=blocked)


def test_a_file_that_settled_is_read_once(write, corpus_of, monkeypatch):
    source = write("a.txt", TEXT)
    reads = []
    real = scan._scan_text
    monkeypatch.setattr(scan, "_scan_text", lambda *args: (reads.append(1), real(*args))[1])
    corpus_of(source)
    corpus_of(source)
    assert len(reads) == 2  # written a moment ago: it may change again within one tick of its time stamp
    monkeypatch.setattr(scan, "SETTLED_SECONDS", -1.0)
    corpus_of(source)
    corpus_of(source)
    assert len(reads) == 3


def test_a_changed_file_is_noticed_even_when_its_time_is_set_back(write, corpus_of, monkeypatch):
    monkeypatch.setattr(scan, "SETTLED_SECONDS", -1.0)
    source = write("a.txt", TEXT)
    before = Path(source).stat()
    one = corpus_of(source).digest
    write("a.txt", TEXT.replace("5", "6"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert corpus_of(source).digest != one


def test_the_folder_is_the_configured_one_then_the_environments_then_the_users(monkeypatch):
    monkeypatch.setenv("ADAPTIVE_CACHE", "/from/environment")
    assert cache_folder("/configured") == Path("/configured")
    assert cache_folder(None) == Path("/from/environment")
    monkeypatch.delenv("ADAPTIVE_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == Path("/home/somebody/.cache/adaptive-lm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder(None) == Path("/xdg/adaptive-lm")
