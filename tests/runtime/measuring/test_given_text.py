"""The text that bench, calibrate and inspect read is the text that training would read from the same bytes."""

import codecs
import gzip
from pathlib import Path

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime import Engine
from adaptive_lm.runtime.measuring.quality.given_text import read_text


def read(engine: Engine, tmp_path: Path, content: bytes, name: str = "a.txt") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return read_text(engine, path, tmp_path, "--text")[0].text


def test_line_ends_stay_as_they_are(engine: Engine, tmp_path: Path) -> None:
    assert read(engine, tmp_path, b"one\r\ntwo\rthree\n") == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
def test_a_byte_order_mark_is_no_text(engine: Engine, tmp_path: Path, mark: bytes) -> None:
    assert read(engine, tmp_path, mark + b"text") == "text"


def test_a_compressed_text_is_read(engine: Engine, tmp_path: Path) -> None:
    assert read(engine, tmp_path, gzip.compress(b"text"), "a.txt.gz") == "text"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tsv", "a.NDJSON"])
def test_records_are_refused_with_a_name_to_write_their_texts_to(engine: Engine, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"holds records, expected plain text .*--text \S*/a\.txt"):
        read(engine, tmp_path, b"{}", name)


def test_the_heldout_text_of_the_run_keeps_its_line_ends(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "heldout.txt").write_bytes(b"one\r\ntwo")
    text, name = read_text(engine, None, tmp_path, "--text")
    assert (text.text, name) == ("one\r\ntwo", "heldout.txt")
