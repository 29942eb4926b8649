"""A model exported before this manifest format still loads, generates the same tokens, and can be calibrated."""

import json
import shutil
from pathlib import Path

import pytest

from adaptive_lm.runtime import Manifest, Params, load
from adaptive_lm.runtime.calibration.calibrate import write
from adaptive_lm.runtime.format.upgrade import FORMAT_VERSION, upgrade

OLD = Path(__file__).parent / "old_model"
GENERATED = json.loads((OLD / "generated.json").read_text(encoding="utf-8"))


def test_the_fixture_is_of_the_first_format_version() -> None:
    content = json.loads((OLD / "manifest.json").read_bytes())
    assert content["format_version"] == 1
    assert "head" in content["costs"]["flops"]


@pytest.mark.parametrize(("point", "compute"), [("as trained", None), ("--compute 0.5", 0.5)])
def test_an_old_model_generates_what_it_generated(point: str, compute: float | None) -> None:
    recorded = GENERATED[point]
    engine = load(OLD, device="cpu", threads=1)
    tokens = list(engine.generate("The quick", Params(temperature=0, compute=compute)))
    assert "".join(token.text for token in tokens) == recorded["text"]
    assert [token.id for token in tokens] == recorded["ids"]
    assert [token.usage.executed_flops for token in tokens] == recorded["executed_flops"]
    assert [token.usage.dense_flops for token in tokens] == recorded["dense_flops"]


def test_an_old_manifest_is_written_in_the_oldest_version_that_describes_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD, tmp_path / "model"))
    manifest = Manifest.read(folder)
    assert manifest.curve is not None
    write(folder, manifest.curve)
    content = json.loads((folder / "manifest.json").read_bytes())
    assert content["format_version"] == 2 < FORMAT_VERSION
    assert Manifest.read(folder) == manifest


def test_an_upgrade_renames_the_output_head_and_leaves_the_attention_heads() -> None:
    old = {"format_version": 1, "costs": {"flops": {"head": 9, "layers": [{"head": 4}]}}}
    new = {"format_version": FORMAT_VERSION, "costs": {"flops": {"lm_head": 9, "layers": [{"head": 4}]}}}
    assert upgrade(old) == new
    assert upgrade(new) == new


@pytest.mark.parametrize("content", [{}, {"format_version": "1"}, {"format_version": 99}])
def test_an_unknown_version_comes_back_unchanged(content: dict[str, object]) -> None:
    assert upgrade(content) == content


@pytest.mark.parametrize("costs", [None, [], {"flops": 3}])
def test_damaged_costs_are_left_for_the_schema(costs: object) -> None:
    assert upgrade({"format_version": 1, "costs": costs})["costs"] == costs
