"""The files of a second graph: damaged, missing, of other names, or pointing elsewhere, they are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import GRAPH, MANIFEST, WEIGHTS, target_files
from adaptive_lm.export.exporter import Exported
from adaptive_lm.runtime.format.files import digest
from adaptive_lm.runtime.format.manifest import Manifest

CPU_GRAPH, CPU_WEIGHTS = target_files("cpu")


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the manifest, and make its list of files agree with the folder."""
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    content["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in content["files"]
        if (folder / name).exists()
    }
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def point_elsewhere(graph: Path, location: str) -> None:
    proto = onnx.load(graph, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    graph.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("graph", "location", "own"),
    [
        (CPU_GRAPH, WEIGHTS, CPU_WEIGHTS),
        (GRAPH, CPU_WEIGHTS, WEIGHTS),
        (CPU_GRAPH, "/etc/passwd", CPU_WEIGHTS),
        (CPU_GRAPH, "../x", CPU_WEIGHTS),
    ],
)
def test_a_graph_may_point_to_its_own_weights_only(copy: Path, graph: str, location: str, own: str) -> None:
    point_elsewhere(copy / graph, location)
    with pytest.raises(UserError, match=f"{graph}: its weights point to '{location}', expected '{own}'"):
        Manifest.read(rewrite(copy, lambda content: None))


@pytest.mark.parametrize("field", ["graph", "data"])
@pytest.mark.parametrize("value", [GRAPH, "tokenizer.json", "other.onnx", "../model.cpu.onnx"])
def test_a_target_whose_files_have_other_names_is_refused(copy: Path, field: str, value: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["targets"]["cpu"][field] = value

    with pytest.raises(UserError, match=r"targets\.cpu is in .*, which are not its files"):
        Manifest.read(rewrite(copy, change))


def test_the_portable_graph_is_no_second_target(copy: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["targets"]["portable"] = content["targets"]["cpu"] | {"graph": GRAPH, "data": WEIGHTS}

    with pytest.raises(UserError, match=r"targets\.portable"):
        Manifest.read(rewrite(copy, change))


def test_a_target_without_its_graph_is_refused(copy: Path) -> None:
    (copy / CPU_GRAPH).unlink()
    with pytest.raises(UserError, match=f"lists no {CPU_GRAPH}"):
        Manifest.read(rewrite(copy, lambda content: None))


def test_costs_of_a_target_cover_every_layer(copy: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["targets"]["cpu"]["costs"]["flops"]["layers"].pop()

    with pytest.raises(UserError, match=r"targets\.cpu\.costs\.flops\.layers has 2 entries for 3 layers"):
        Manifest.read(rewrite(copy, change))


def test_a_manifest_without_targets_has_the_portable_graph_alone(copy: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["targets"], content["model"]["precisions"]

    manifest = Manifest.read(rewrite(copy, change))
    assert (manifest.targets, manifest.model.precisions, manifest.model.precision) == ({}, None, "fp32")


def test_a_damaged_second_graph_is_refused(copy: Path) -> None:
    with (copy / CPU_WEIGHTS).open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(UserError, match=rf"{CPU_WEIGHTS} is damaged: found sha256"):
        Manifest.read(copy)
