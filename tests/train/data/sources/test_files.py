"""The files of --data: any text that is named or matched, plain or compressed, and errors for the rest."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.texts import decoded, held_out_targets, lines, train_text

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import DataConfig, TokenizerConfig, prepare
from adaptive_lm.train.data.sources.sources import resolve_source

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def kinds(spec, log=lambda text: None):
    return [(Path(item.name).name, item.kind) for item in resolve_source(str(spec), None, log).items]


@pytest.mark.parametrize("name", ["main.py", "README", "a.tex", "Makefile.TXT", "notes.docx"])
def test_any_text_that_is_named_trains(write, corpus_of, name):
    corpus = corpus_of(write(name, lines(50)), val_fraction=0.5)
    assert lines(50).startswith(train_text(corpus).replace("<|endoftext|>", ""))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.py", "A.TXT"])
def test_compressed_text_trains_as_plain_text_does(write, corpus_of, name, suffix):
    plain = corpus_of(write(name, lines(500)))
    packed = corpus_of(write(f"sub/{name}{suffix.upper()}", COMPRESS[suffix](lines(500).encode())))
    assert train_text(packed) == train_text(plain)
    assert packed.digest == plain.digest


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv"])
def test_compressed_records_train_as_plain_ones_do(write, corpus_of, name):
    rows = [f"document {n}" for n in range(40)]
    content = {
        "json": str(rows).replace("'", '"'),
        "csv": "\n".join(["text", *rows]),
        "tsv": "\n".join(["id\ttext", *(f"1\t{r}" for r in rows)]),
    }
    data = content.get(name.split(".")[1], "\n".join(f'"{r}"' for r in rows)).encode()
    plain, packed = corpus_of(write(name, data)), corpus_of(write(f"{name}.gz", gzip.compress(data)))
    assert train_text(packed) == train_text(plain)
    assert "document 0" in train_text(plain)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_text_of_another_encoding_trains_as_utf8_does(write, corpus_of, encoding):
    text = "\r\n".join(f"Zeile {n} – 冬" for n in range(200))
    one, other = corpus_of(write("a.txt", text)), corpus_of(write("b.txt", text.encode(encoding)))
    assert train_text(one) == train_text(other)
    assert other.heldout_text(10**6) == one.heldout_text(10**6)


def test_held_out_text_keeps_its_line_ends_through_the_cache(write, corpus_of):
    source = write("a.txt", "one line\r\nanother\ralone\n" * 50)
    for _ in range(2):  # tokenised, then found in the cache
        corpus = corpus_of(source, val_fraction=0.5)
        assert corpus.heldout_text(10**6) == decoded(corpus, held_out_targets(corpus)).removesuffix("<|endoftext|>")
    assert "\r\n" in corpus.heldout_text(100)


def test_a_pattern_takes_every_text_and_names_the_binary_files_it_leaves_out(write, tmp_path):
    for name in ("a.py", "sub/b.cpp", "sub/c.jsonl", "README", "d.py.gz"):
        write(name, gzip.compress(b"x = 1\n") if name.endswith("gz") else "1\n")
    write("sub/image.png", b"\x89PNG\r\n\x1a\n\0\0")
    write("sub/mod.pyc", b"\xa7\r\r\n\0\0\0\0")
    write("archive.tar.gz", gzip.compress(b"name".ljust(257, b"\0") + b"ustar"))
    said = []
    assert kinds(tmp_path / "data" / "**" / "*", said.append) == [
        ("README", "text"), ("a.py", "text"), ("d.py.gz", "text"), ("b.cpp", "text"), ("c.jsonl", "jsonl"),
    ]  # fmt: skip
    assert "5 files read, 3 binary left out" in said[0]
    assert "archive.tar.gz" in said[0]
    with pytest.raises(UserError, match=r"matches binary files alone \(.*image\.png\)"):
        kinds(tmp_path / "data" / "sub" / "*.png")


def test_a_binary_file_that_is_named_is_refused_by_name(write, corpus_of):
    with pytest.raises(UserError, match=r"image\.png is a binary file .*: a PNG image"):
        corpus_of(write("image.png", b"\x89PNG\r\n\x1a\n\0\0"))


def test_a_folder_takes_texts_and_records_also_compressed_and_leaves_code_out(write, tmp_path):
    for name in ("a.txt", "b.MD", "c.txt.gz", "d.ndjson", "e.tsv", "f.csv.xz", "g.rst", "main.py", "h.zip"):
        write(name, "x")
    said = []
    assert [name for name, _ in kinds(tmp_path / "data", said.append)] == [
        "a.txt", "b.MD", "c.txt.gz", "d.ndjson", "e.tsv", "f.csv.xz", "g.rst",
    ]  # fmt: skip
    assert said == [f"the folder {tmp_path / 'data'}: 7 files read, 2 of other kinds left out"]


def test_a_pipe_is_refused_with_what_to_do(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for spec in (str(tmp_path / "pipe"), "-", "/dev/null"):
        with pytest.raises(
            UserError, match=r"a pipe, .*expected a file, because --data is read several times. Save it"
        ):
            kinds(spec)


def test_standard_input_from_a_pipe_is_refused_and_from_a_file_is_read(write):
    code = (
        "from adaptive_lm.train.data.sources.sources import resolve_source\n"
        "try: print(resolve_source('/dev/stdin', None, print).items[0].kind)\n"
        "except ValueError as error: print(error)"
    )
    run = [sys.executable, "-c", code]
    assert "because --data is read several times" in subprocess.check_output(run, input="x", text=True)
    with Path(write("a.txt", "x")).open() as file:
        assert subprocess.check_output(run, stdin=file, text=True) == "text\n"


def test_the_home_folder_is_expanded(write, monkeypatch, tmp_path):
    write("a.txt", "x")
    write("v@2", "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kinds("~/data/a.txt") == kinds("~/data/*.txt") == kinds("~/data/a.txt@0.5") == [("a.txt", "text")]
    assert kinds("~/data/v@2") == [("v@2", "text")]
    assert [item.path for item in resolve_source("a.txt", None, print, "~/data").items] == [tmp_path / "data" / "a.txt"]


def hub_cache(tmp_path, revisions=("abc",), main="abc"):
    repository = tmp_path / "datasets--org--name"
    (repository / "blobs").mkdir(parents=True)
    for revision in revisions:
        snapshot = repository / "snapshots" / revision / "data"
        snapshot.mkdir(parents=True)
        (repository / "blobs" / f"{revision}0").write_text('{"text": "x"}\n')
        (snapshot / "train.jsonl").symlink_to(f"../../../blobs/{revision}0")
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main)
    return repository


@pytest.mark.parametrize("part", ["", "snapshots/abc", "snapshots/abc/data", "snapshots/abc/data/train.jsonl"])
def test_a_data_set_in_the_cache_of_the_hub_is_read(tmp_path, part):
    assert kinds(hub_cache(tmp_path) / part) == [("train.jsonl", "jsonl")]


def test_of_several_snapshots_the_current_one_is_read_and_without_one_a_choice_is_asked_for(tmp_path):
    repository = hub_cache(tmp_path, ("abc", "def"), "def")
    (item,) = resolve_source(str(repository), None, print).items
    assert "def" in item.name
    (repository / "refs" / "main").unlink()
    with pytest.raises(UserError, match=r"with 2 snapshots; choose one: --data .*snapshots/abc"):
        kinds(repository)


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to("../blobs/gone")
    with pytest.raises(UserError, match=r"a\.txt is a symbolic link to \.\./blobs/gone, which does not exist"):
        kinds(tmp_path / "a.txt")


def test_a_git_lfs_pointer_is_named_whatever_it_stands_for(write, corpus_of):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet"):
        with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
            corpus_of(write(name, pointer))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_trains(tmp_path, corpus_of):
    folder = tmp_path / "texts"
    folder.mkdir()
    path = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")
    Path(path).write_text(lines(50))
    assert train_text(corpus_of(path)) == train_text(corpus_of(str(folder)))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b"", mtime=0)],
    ids=["nothing", "utf-8-mark", "utf-16-mark", "gzip"],
)
def test_a_text_without_a_character_is_called_empty(write, corpus_of, content):
    with pytest.raises(UserError, match=r"a\.txt is empty; expected text to train on"):
        corpus_of(write("a.txt", content))


def test_progress_of_a_compressed_file_never_passes_its_end(write):
    calls = []
    source = write("a.txt.gz", gzip.compress(lines(50_000).encode()))
    prepare(
        DataConfig(sources=(source,)), TokenizerConfig(kind="bytes"), seed=0, progress=lambda *call: calls.append(call)
    )
    assert all(0 < done <= total for _, done, total in calls)
