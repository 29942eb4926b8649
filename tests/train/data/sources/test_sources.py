"""The values of --data, and the errors for sources that do not exist."""

from pathlib import Path

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import DataConfig, SourceConfig
from adaptive_lm.train.data.sources.sources import parse_source, resolve_source, resolve_sources


def names(spec, log=lambda text: None):
    return [Path(item.name).name for item in resolve_source(spec, None, log).items]


def test_a_weight_stands_behind_the_last_at_sign():
    assert parse_source("texts/a.txt@0.3") == SourceConfig(path="texts/a.txt", weight=0.3)
    assert parse_source("mail@home.txt") == SourceConfig(path="mail@home.txt")
    assert parse_source("hf:some/name:config:train@2") == SourceConfig(path="hf:some/name:config:train", weight=2)


def test_a_file_that_is_called_like_a_weight_is_a_file(write):
    path = write("v@2", "x")
    assert parse_source(path) == SourceConfig(path=path)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_a_weight_must_be_a_number_above_zero(weight):
    with pytest.raises(UserError, match="expected a number above 0"):
        parse_source(f"a.txt@{weight}")


def test_a_folder_gives_its_texts_in_order_and_says_what_it_left_out(write, tmp_path):
    for name in ("b.txt", "a.md", "sub/c.jsonl", "image.png", ".hidden/d.txt"):
        write(name, "x")
    said = []
    assert names(str(tmp_path / "data"), said.append) == ["a.md", "b.txt", "c.jsonl"]
    assert said == [f"the folder {tmp_path / 'data'}: 3 files read, 1 of other kinds left out"]


def test_a_pattern_reaches_into_folders(write, tmp_path):
    write("a.txt", "x")
    write("sub/b.txt", "x")
    assert names(str(tmp_path / "data" / "**" / "*.txt")) == ["a.txt", "b.txt"]


def test_a_missing_file_brings_up_the_nearest_name(write):
    path = write("shakespeare.txt", "x")
    with pytest.raises(UserError, match=r"shakspeare\.txt does not exist .*did you mean shakespeare\.txt\?"):
        resolve_source(path.replace("shakespeare", "shakspeare"), None, print)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nor does its folder"):
        resolve_source(str(tmp_path / "nowhere" / "a.txt"), None, print)


def test_a_misspelt_builtin_brings_up_the_right_one():
    with pytest.raises(UserError, match=r"no built-in text 'builtin:fact'; did you mean builtin:facts\?"):
        resolve_source("builtin:fact", None, print)
    with pytest.raises(UserError, match=r"there is builtin:facts, builtin:python-docs"):
        resolve_source("builtin:xyz", None, print)


def test_a_pattern_that_matches_nothing_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=r"matches no file \(looked from "):
        resolve_source(str(tmp_path / "*.txt"), None, print)


def test_a_folder_without_texts_says_what_it_found(write, tmp_path):
    write("a.png", "x")
    with pytest.raises(UserError, match=r"holds no text: found \.png, expected \.txt.*--data '.*/data/\*\*/\*\.py'"):
        resolve_source(str(tmp_path / "data"), None, print)


def test_no_source_at_all_is_refused():
    with pytest.raises(UserError, match="no data given"):
        resolve_sources(DataConfig(), print)
    with pytest.raises(UserError, match="an empty --data"):
        resolve_source("", None, print)


def test_an_hf_name_may_not_be_empty():
    with pytest.raises(UserError, match="expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"):
        resolve_source("hf:", None, print)


def test_relative_paths_are_looked_up_in_the_folder_that_is_named(write, tmp_path):
    write("a.txt", "x")
    write("v@2", "x")
    folder = str(tmp_path / "data")
    (source,) = resolve_sources(DataConfig(sources=("a.txt",), dir=folder), print)
    assert [item.path for item in source.items] == [tmp_path / "data" / "a.txt"]
    assert source.name == "a.txt"
    assert [item.name for item in resolve_source(write("b.txt", "x"), None, print, "/nowhere").items] == [
        f"{folder}/b.txt"
    ]
    assert [i.name for i in resolve_source("*.txt", None, print, folder).items] == [f"{folder}/{n}.txt" for n in "ab"]
    assert parse_source("v@2", folder) == SourceConfig(path="v@2")
    assert resolve_source("builtin:facts", None, print, folder).items[0].kind == "builtin"


def test_a_file_missing_from_that_folder_says_which_option_names_it(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt does not exist .*--data-dir, which is"):
        resolve_source("a.txt", None, print, str(tmp_path))


def test_the_home_of_a_user_who_does_not_exist_is_a_path_that_does_not_exist():
    with pytest.raises(UserError, match="no-such-user"):
        resolve_source("~no-such-user/text.txt", None, lambda _: None)
