"""Folders that are damaged, hostile, mixed up, or of a model that cannot be computed: one clear error each."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign.folders import byte_tokenizer, write_folder, write_tokenizer
from support.mutations import fuzz, mutated, original, refusal

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.importing.errors import ForeignFileError, TensorsError, UnsupportedModelError
from adaptive_lm.train.importing.heldout import loaded
from adaptive_lm.train.importing.importer import read_foreign
from adaptive_lm.train.importing.source import ForeignModel

pytest.importorskip("transformers")


def read(folder: Path) -> ForeignModel:
    return read_foreign(folder, lambda _what, _done, _total: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_folder(folder, "qwen3_moe")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text())
    content.update(fields)
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove"}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


# --- tensors


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.pop("model.layers.2.self_attn.k_norm.weight"))
    with pytest.raises(TensorsError, match=r"has no tensor model\.layers\.2\.self_attn\.k_norm\.weight"):
        read(folder)


def test_a_tensor_that_nothing_uses_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.update({"model.layers.0.adapter.weight": torch.zeros(2)}))
    with pytest.raises(TensorsError, match=r"no use for: model\.layers\.0\.adapter\.weight"):
        read(folder)


def test_weights_of_another_model_than_the_config_are_refused(folder: Path) -> None:
    edit(folder / "config.json", num_key_value_heads=1)
    with pytest.raises(
        TensorsError, match=r"k_proj\.weight .* has the shape \[32, 32\], its config implies \[16, 32\]"
    ):
        read(folder)


def test_weights_in_a_dtype_for_storage_are_refused(folder: Path) -> None:
    def quantise(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)

    edit_tensors(folder, quantise)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight .* is stored as I8.* quantised"):
        read(folder)


# --- files


def test_pickles_are_refused_with_the_cure(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ForeignFileError, match=r"pickle \(pytorch_model\.bin\).*safe_serialization=True"):
        read(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ForeignFileError, match="has no weights"):
        read(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, int(weights.stat().st_size * share))
    with pytest.raises(ForeignFileError, match=r"model\.safetensors is damaged"):
        read(folder)


def test_a_header_of_a_gigabyte_is_refused_before_it_is_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{}")
    with pytest.raises(ForeignFileError, match="its header takes 1000000000 bytes"):
        read(folder)


def test_a_tensor_that_is_named_twice_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    twice = content.replace(b"layers.0.input_layernorm", b"layers.1.input_layernorm")
    (folder / "model.safetensors").write_bytes(twice)
    with pytest.raises(ForeignFileError, match=r"layers\.1\.input_layernorm\.weight twice"):
        read(folder)


def test_two_hundred_mutated_files_give_one_clear_error_each(tmp_path: Path) -> None:
    """10,000 were read once: PYTHONPATH=tests python -m support.mutations 10000."""
    assert fuzz(200, tmp_path) < 20
    (tmp_path / "whole.safetensors").write_bytes(original())
    assert refusal(tmp_path / "whole.safetensors") is None
    assert len({mutated(seed) for seed in range(50)}) > 40


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama", shards="40KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ForeignFileError, match=f"{shard.name} are missing"):
        read(tmp_path)


def test_shards_of_two_models_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama", shards="40KB")
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(ForeignFileError, match=r"is in .*-00001-of-.* and in .*-00002-of-"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b.safetensors", "weights.bin", 3])
def test_an_index_that_points_elsewhere_is_refused(name: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, "llama", shards="40KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ForeignFileError, match=r"puts model\.norm\.weight into .*beside it"):
        read(tmp_path)


def test_several_files_without_an_index_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama", shards="40KB")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ForeignFileError, match=r"no model\.safetensors\.index\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds no object"), ("[" * 100_000, "is not JSON"), ('{"a": "\udce4"}', "not UTF-8")],
)
def test_a_damaged_config_is_refused(content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ForeignFileError, match=rf"config\.json.*{message}"):
        read(folder)


def test_a_config_of_a_gigabyte_is_not_read(folder: Path) -> None:
    os.truncate(folder / "config.json", 2**30)
    with pytest.raises(ForeignFileError, match=r"config\.json has 1024 MiB"):
        read(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9), ("num_hidden_layers", "3"), ("hidden_size", -1), ("num_experts", 2.5),
        ("rms_norm_eps", "nan"), ("tie_word_embeddings", 1), ("hidden_size", "remove"), ("mlp_only_layers", {}),
        ("vocab_size", 0), ("num_experts_per_tok", 7), ("max_position_embeddings", 2**31 - 1),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_or_range_is_named(field: str, value: Any, folder: Path) -> None:
    edit(folder / "config.json", **{field: value})
    with pytest.raises(ForeignFileError, match=rf"as {field}, expected"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gemma2", "query_pre_attn_scalar", 0),
        ("gemma2", "query_pre_attn_scalar", -1),
        ("granite", "logits_scaling", 0),
        ("granite", "attention_multiplier", 0),
        ("gpt2", "n_positions", 2**40),
    ],
)
def test_a_factor_or_length_that_no_model_has_is_named(name: str, field: str, value: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, name)
    edit(tmp_path / "config.json", **{field: value})
    with pytest.raises(ForeignFileError, match=f"as {field}, expected"):
        read(tmp_path)


def test_a_context_that_scaling_makes_endless_is_refused(folder: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 24}
    edit(folder / "config.json", rope_parameters=yarn)
    with pytest.raises(ForeignFileError, match="a context of at most 1048576 tokens"):
        read(folder)


# --- what cannot be computed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "deepseek_v3"}, r"latent attention \(MLA\)"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "mamba"}, "state space layers"),
        ({"model_type": "unheard_of"}, "Families that can be read: .*qwen3_moe"),
        ({"architectures": ["Qwen3MoeForSequenceClassification"]}, "no output head"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config .*stored quantised"),
        ({"clip_qkv": 8.0}, "clipping of queries"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions of the kind dynamic"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "fractional bounds"),
        ({"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "must be a multiple of num_kv_heads"),
        ({"scoring_func": "sigmoid"}, "scores of experts other than softmax"),
    ],
)
def test_a_missing_feature_is_named(fields: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(UnsupportedModelError, match=message):
        read(folder)


def test_a_field_that_nobody_knows_is_noted(folder: Path) -> None:
    edit(folder / "config.json", new_feature=3, another=False)
    notes = read(folder).notes
    assert len(notes) == 1
    assert "new_feature" in notes[0]


# --- links


def cache_of(folder: Path, root: Path) -> Path:
    """Lay a model out as the hub's cache does: names that are links into `blobs`."""
    repository = root / "models--maker--tiny"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob{number}")
    more = snapshot / "additional_chat_templates"
    more.mkdir()
    (repository / "blobs" / "template").write_text("tools")
    (more / "tool_use.jinja").symlink_to("../../../blobs/template")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    return repository


@pytest.mark.parametrize("given", [".", "snapshots/0123abc"])
def test_the_cache_of_the_hub_is_read_through_its_links(given: str, whole: Path, tmp_path: Path) -> None:
    foreign = read(cache_of(whole, tmp_path) / given)
    assert foreign.provenance.source == "maker/tiny"
    assert foreign.templates == {"tool_use": "tools"}
    assert loaded(foreign)(torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_a_link_out_of_the_repository_is_refused(whole: Path, tmp_path: Path) -> None:
    repository = cache_of(whole, tmp_path)
    outside = tmp_path / "elsewhere.json"
    shutil.copy(whole / "tokenizer.json", outside)
    link = repository / "snapshots" / "0123abc" / "tokenizer.json"
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(ForeignFileError, match=r"is a link to .*elsewhere\.json, outside the folder of the model"):
        read(repository)


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    (folder / "README.md").symlink_to("nothing.md")
    with pytest.raises(ForeignFileError, match=r"nothing\.md, which is missing"):
        read(folder)


# --- tokenizer and what belongs to it


def test_a_folder_without_tokenizer_json_says_how_to_make_one(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ForeignFileError, match=r"no tokenizer\.json; it has tokenizer\.model.*AutoTokenizer"):
        read(folder)


def test_the_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ForeignFileError, match=r"ids up to 306, the embedding of the model has 300 rows"):
        read(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_a_damaged_tokenizer_is_refused(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ForeignFileError, match=r"tokenizer\.json (is no|has an empty)"):
        read(folder)


def test_a_tokenizer_of_a_gigabyte_is_not_read(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 2**30)
    with pytest.raises(ForeignFileError, match=r"tokenizer\.json has 1024 MiB"):
        read(folder)


def test_a_model_that_names_no_end_of_text_is_refused(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ForeignFileError, match="does not say which token ends a text"):
        read(folder)


def test_ends_are_those_of_all_files_together(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[10, 11], temperature=0.6, top_k=20, do_sample=True)
    edit(folder / "config.json", eos_token_id=11)
    generation = read(folder).generation
    assert generation.eos_ids == (10, 11, 256)
    assert generation.sampling == {"temperature": 0.6, "top_k": 20}
    assert generation.dialect == "huggingface"


@pytest.mark.parametrize(("field", "expected"), [(None, False), (True, True), (False, False)])
def test_whether_a_prompt_begins_with_bos_is_read(field: bool | None, expected: bool, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", add_bos_token=field, bos_token="<|im_end|>")  # noqa: S106
    generation = read(folder).generation
    assert (generation.bos_id, generation.add_bos) == (256, expected)


def test_the_post_processor_tells_whether_a_prompt_begins_with_bos(folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.post_processor = TemplateProcessing("<|im_end|> $A", None, [("<|im_end|>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert read(folder).generation.add_bos


def test_chat_templates_are_read_from_all_places(folder: Path) -> None:
    named = [{"name": "default", "template": "old"}, {"name": "rag", "template": "documents"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert read(folder).templates == {"default": "old", "rag": "documents"}
    (folder / "chat_template.jinja").write_text("new")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert read(folder).templates == {"default": "new", "rag": "documents", "tool_use": "tools"}


@pytest.mark.parametrize("template", [3, [{"name": "x"}], [{"name": "../x", "template": "y"}], "x" * 2**21])
def test_a_damaged_chat_template_is_refused(template: Any, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(UserError, match=r"chat.template"):
        read(folder)


def test_the_licence_is_that_of_the_readme(folder: Path) -> None:
    assert read(folder).provenance.licence is None
    (folder / "LICENSE").write_text("text")
    assert read(folder).provenance.licence == "see LICENSE"
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    assert read(folder).provenance.licence == "apache-2.0"


def test_every_file_that_was_read_has_its_digest(folder: Path) -> None:
    import hashlib

    files = read(folder).provenance.files
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files.keys()
    assert files["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_masks_in_old_files_are_left_out(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, name)
    mask = {"gpt2": "transformer.h.0.attn.bias", "gpt_neox": "gpt_neox.layers.0.attention.bias"}[name]
    edit_tensors(tmp_path, lambda state: state.update({mask: torch.ones(1, 1, 8, 8, dtype=torch.bool)}))
    read(tmp_path)


def test_a_path_that_is_no_model_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="there is no file or folder"):
        read(tmp_path / "absent")
    with pytest.raises(ForeignFileError, match=r"has no config\.json"):
        read(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ForeignFileError, match=r"it has model\.gguf: import that file"):
        read(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ForeignFileError, match="name the folder"):
        read(tmp_path / "tokenizer.json")
