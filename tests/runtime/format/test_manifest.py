"""Errors for a damaged, incomplete, foreign or hostile exported model (S50, S51, S58)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.graphs.rich_graph import sections
from support.graphs.tiny_graph import L, manifest_content, write_manifest

from adaptive_lm.runtime import Manifest, UserError, load
from adaptive_lm.runtime.format.files import digest, write_output


def test_a_manifest_reads_back_as_it_was_written(model: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(model)
    manifest.write(tmp_path)
    assert Manifest.model_validate_json((tmp_path / "manifest.json").read_bytes()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"], "no temporary file stays"


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no exported model at .*nowhere.*adaptive export"):
        Manifest.read(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_an_export_that_did_not_finish(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json: the export did not finish"):
        Manifest.read(copy)


def test_another_format_version_names_both_versions(changed: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="format version 7, this program reads 1 to 3"):
        Manifest.read(changed(format_version=7))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_a_manifest_that_is_no_json_is_damaged(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Manifest.read(copy)


@pytest.mark.parametrize("content", ["[]", "1", '"x"', "null", '{"format": "gguf"}'])
def test_other_json_is_no_manifest(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="is not the manifest of an exported model"):
        Manifest.read(copy)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"num_layers": 4}, "model: .*3 layers are described, num_layers is 4"),
        ("model", {"tokenizer_size": 999}, "tokenizer_size 999 is larger than vocab_size"),
        ("model", {"eos_id": 258}, "eos_id 258 is outside the tokenizer"),
        ("model", {"dim": "wide"}, r"model\.dim"),
        ("thresholds", {"router_top_p": [0.5]}, "router_top_p has 1 entries for 3 layers"),
        ("thresholds", {"depth_threshold": [0, 1.5, 0]}, r"thresholds\.depth_threshold\.1"),
        ("dial", {"grid": [0, 0.5, 0.5]}, "grid must rise"),
        ("thresholds", {"head_top_p": [0.5]}, r"thresholds\.head_top_p has 1 entries for 3 layers"),
        ("dial", {"head_top_p": [None]}, r"dial\.head_top_p has 1 entries for 3 layers"),
        ("dial", {"head_top_p": [[0, 1]] * 3}, r"head_top_p\[0\] has 2 values for a grid of 3"),
        ("files", {"tokenizer.json": {"bytes": 1, "sha256": "zz"}}, r"files\.tokenizer\.json\.sha256"),
    ],
)
def test_a_manifest_that_contradicts_itself_names_the_field(
    changed: Callable[..., Path], section: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Manifest.read(changed(**{section: change}))


def test_a_manifest_without_the_later_fields_reads_as_what_such_a_model_is(model: Path) -> None:
    content = json.loads((model / "manifest.json").read_bytes())
    for layer in content["model"]["layers"]:
        for name in ("positions", "window", "head_routing", "shared_heads", "least_heads", "most_heads"):
            del layer[name]
    del content["model"]["exit_criterion"], content["thresholds"]["head_top_p"], content["dial"]["head_top_p"]
    del content["dial"]["target"]["heads_per_token"], content["curve"]
    for table in content["costs"].values():
        for layer in table["layers"]:
            del layer["head"], layer["head_per_key"]
    old = Manifest.model_validate(content)
    assert old == Manifest.read(model)
    assert old.model.layers[0].head_range(old.model.num_heads) == (2, 2)
    assert old.model.exit_criterion == "top_prob"
    assert not any((old.model.routes_heads, old.model.dials_heads, old.model.has_windows, old.curve))
    assert not any(old.model.counts_cells(layer) for layer in range(L))
    assert old.costs.flops.layers[0].head == 0


def rich(model: dict[str, Any] | None = None, **layer: Any) -> Manifest:
    content = manifest_content()
    for section, value in sections().items():
        content[section] = content[section] | value
    content["model"] |= model or {}
    content["model"]["layers"] = [one | layer for one in content["model"]["layers"]]
    return Manifest.model_validate(content)


def test_cells_are_counted_where_cope_could_count_a_token_that_skipped() -> None:
    """Layer 0 of the three is never skipped; under `none` a skipped token is in no cache at all."""

    def counted(manifest: Manifest) -> list[bool]:
        return [manifest.model.counts_cells(layer) for layer in range(L)]

    assert counted(rich()) == [False, True, True]
    assert counted(rich(positions="cope")) == [False, True, True]
    assert counted(rich(positions="rope")) == [False] * 3
    assert counted(rich(exit=False)) == [False, True, False]
    assert counted(rich(exit=False, depth_router=False)) == [False] * 3
    assert counted(rich(model={"skipped_kv": "none"})) == [False] * 3


def test_a_head_threshold_is_an_input_only_where_it_decides() -> None:
    assert rich().model.dials_heads
    fixed = rich(head_routing="top_k", least_heads=2, most_heads=2).model
    assert fixed.routes_heads
    assert not fixed.dials_heads


@pytest.mark.parametrize(
    "layer",
    [{"least_heads": 3, "most_heads": 2}, {"shared_heads": 2}, {"most_heads": 5}],
    ids=["falling", "shared", "too many"],
)
def test_numbers_of_heads_that_do_not_fit_are_refused(layer: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="these four must not decrease"):
        rich(**layer)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_one_flipped_bit_names_the_file_and_both_digests(copy: Path, name: str) -> None:
    expected = digest(copy / name)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: found sha256 {digest(copy / name)}.*says {expected}"):
        Manifest.read(copy)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_names_both_sizes(copy: Path, verify: bool) -> None:
    path = copy / "model.onnx.data"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=rf"model\.onnx\.data is damaged: found {size - 1} bytes, the manifest says {size}"
    ):
        Manifest.read(copy, verify=verify)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing, the manifest lists it"):
        Manifest.read(copy)


def test_a_file_that_cannot_be_read_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("adaptive_lm.runtime.format.files.digest", refused)
    with pytest.raises(UserError, match=r"cannot read .*model\.onnx: Permission denied"):
        Manifest.read(copy)


def test_a_manifest_must_list_graph_and_tokenizer(copy: Path) -> None:
    content = manifest_content()
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lists no model\.onnx, tokenizer\.json"):
        Manifest.read(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", "a\\b", "c:x", "x\0y", ""])
def test_a_file_outside_the_folder_is_refused(copy: Path, changed: Callable[..., Path], name: str) -> None:
    (copy.parent / "secret").write_text("s")
    with pytest.raises(UserError, match="not a plain file name"):
        Manifest.read(changed(files={name: {"bytes": 1, "sha256": "0" * 64}}))


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_link_is_refused_even_to_the_right_bytes(copy: Path, link: Callable[..., None], verify: bool) -> None:
    path = copy / "model.onnx.data"
    outside = copy.parent / "outside.data"
    path.rename(outside)
    link(outside, path)
    with pytest.raises(UserError, match="link"):
        Manifest.read(copy, verify=verify)


def _external(copy: Path, change: Callable[[onnx.TensorProto], None], where: str = "initializer") -> Path:
    """Change one external tensor of the model, and make the manifest agree with the file."""
    proto = onnx.load(copy / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.external_data)
    change(tensor)
    if where != "initializer":
        hidden = onnx.TensorProto()
        hidden.CopyFrom(tensor)
        proto.graph.initializer.remove(tensor)
        inner = onnx.helper.make_graph([], "inner", [], [], [hidden])
        holder = inner if where == "subgraph" else None
        node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=holder) if holder else None
        if where == "attribute":
            node = onnx.helper.make_node("Constant", [], ["y"], value=hidden)
        if where == "function":
            constant = onnx.helper.make_node("Constant", [], ["y"], value=hidden)
            opset = onnx.helper.make_opsetid("", 24)
            proto.functions.append(onnx.helper.make_function("mine", "f", [], ["y"], [constant], [opset]))
        if node is not None:
            proto.graph.node.append(node)
    (copy / "model.onnx").write_bytes(proto.SerializeToString())
    return write_manifest(copy)


def _set(key: str, value: str) -> Callable[[onnx.TensorProto], None]:
    def change(tensor: onnx.TensorProto) -> None:
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return change


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "tokenizer.json", "", "./model.onnx.data"])
@pytest.mark.parametrize("where", ["initializer", "subgraph", "attribute", "function"])
def test_weights_elsewhere_are_refused_wherever_the_graph_hides_them(copy: Path, location: str, where: str) -> None:
    with pytest.raises(UserError, match=r"expected 'model\.onnx\.data'"):
        Manifest.read(_external(copy, _set("location", location), where), verify=False)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-4096"), ("length", "99999999999"), ("offset", "9223372036854775807")]
)
def test_weights_beyond_their_file_are_refused(copy: Path, key: str, value: str) -> None:
    with pytest.raises(UserError, match="a weight points to bytes"):
        Manifest.read(_external(copy, _set(key, value)))


def test_a_location_stated_twice_is_refused(copy: Path) -> None:
    def twice(tensor: onnx.TensorProto) -> None:
        tensor.external_data.add(key="location", value="model.onnx.data")

    with pytest.raises(UserError, match="states its 'location' twice"):
        Manifest.read(_external(copy, twice))


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(copy: Path) -> None:
    content = json.loads((copy / "manifest.json").read_text())
    del content["files"]["model.onnx.data"]
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="which the manifest does not list"):
        Manifest.read(copy)


@pytest.mark.parametrize("content", [b"\x3a\xff\xff\xff\x7f", b"\x3b", b"\x3a\x02\x0a\xff", b"\xff" * 12], ids=str)
def test_a_graph_that_is_no_protobuf_is_refused(copy: Path, content: bytes) -> None:
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match="not a well-formed ONNX file"):
        Manifest.read(write_manifest(copy))


def test_a_vocabulary_of_another_tokenizer_gives_both_sizes(copy: Path) -> None:
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {char: i for i, char in enumerate("abc")}
    content["added_tokens"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has a vocabulary of 3, the model was made for 257"):
        load(write_manifest(copy))


def test_a_tokenizer_that_is_none_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        load(write_manifest(copy))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_output(tmp_path / "missing" / "file", b"x")
