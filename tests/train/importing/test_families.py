"""Every family that can be read computes what transformers computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign.folders import LENGTH, MODELS, random_ids, write_folder
from torch import Tensor

from adaptive_lm.train.importing.heldout import loaded
from adaptive_lm.train.importing.importer import capped, read_foreign
from adaptive_lm.train.importing.source import ForeignModel
from adaptive_lm.train.model import Transformer

pytest.importorskip("transformers")

FAMILIES = [*MODELS, "deepseek"]
TOLERANCE = 1e-4
"""Largest difference of logits as a share of their spread."""
GREEDY = 12
"""Tokens; 200 were compared once by hand, see docs/decisions/0040-importing.md."""


def read(folder: Path) -> ForeignModel:
    return read_foreign(folder, lambda _what, _done, _total: None)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, ForeignModel]:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = write_folder(folder, request.param)
    return request.param, theirs, read(folder)


@torch.no_grad()
def difference(theirs: Any, ours: Transformer, ids: Tensor) -> float:
    """Return the largest difference of the logits as a share of their spread."""
    expected, logits = theirs(ids, use_cache=False).logits, ours(ids).logits
    return float((expected - logits).abs().max() / (expected.max() - expected.min()))


def test_the_logits_are_those_of_transformers_up_to_four_times_the_original_context(
    pair: tuple[str, Any, ForeignModel],
) -> None:
    name, theirs, foreign = pair
    ours = loaded(foreign)
    lengths = [4 * LENGTH] if name == "phi3_longrope" else [LENGTH // 2, LENGTH, 4 * LENGTH]
    assert max(difference(theirs, ours, random_ids(length)) for length in lengths) < TOLERANCE


@torch.no_grad()
def test_the_greedy_text_is_that_of_transformers(pair: tuple[str, Any, ForeignModel]) -> None:
    name, theirs, foreign = pair
    ids = random_ids(LENGTH + 1 if name == "phi3_longrope" else 5)
    expected = ids
    ours, mine = loaded(foreign), ids
    for _ in range(GREEDY):
        expected = torch.cat([expected, theirs(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        mine = torch.cat([mine, ours(mine).logits[:, -1:].argmax(-1)], 1)
    assert mine.tolist() == expected.tolist()


def test_a_context_within_the_original_one_takes_the_short_factors(tmp_path: Path) -> None:
    theirs = write_folder(tmp_path, "phi3_longrope")
    short = capped(read(tmp_path), LENGTH)
    assert short.config.context_length == LENGTH
    assert difference(theirs, loaded(short), random_ids(LENGTH)) < TOLERANCE
    assert any(f"--context {LENGTH}" in note for note in short.notes)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma2", "granitemoe"])
def test_a_checkpoint_in_bf16_keeps_its_dtype_and_its_values(name: str, tmp_path: Path) -> None:
    theirs = write_folder(tmp_path, name, dtype=torch.bfloat16)
    foreign = read(tmp_path)
    assert foreign.tensors["embedding.weight"].read().dtype == torch.bfloat16
    assert foreign.tensors["layers.0.attention.kv.weight"].dtype == torch.bfloat16
    assert difference(theirs, loaded(foreign), random_ids(2 * LENGTH)) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_a_sharded_model_is_read_as_a_whole_one(name: str, tmp_path: Path) -> None:
    theirs = write_folder(tmp_path, name, shards="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    foreign = read(tmp_path)
    assert difference(theirs, loaded(foreign), random_ids(LENGTH)) < TOLERANCE
    assert sum(name.endswith(".safetensors") for name in foreign.provenance.files) > 2


def test_fields_of_transformers_4_mean_what_those_of_5_mean(tmp_path: Path) -> None:
    import json

    theirs = write_folder(tmp_path, "llama3")
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    scaling["type"] = scaling.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(theirs, loaded(read(tmp_path)), random_ids(4 * LENGTH)) < TOLERANCE


@pytest.mark.parametrize(("name", "block"), [("qwen3_moe", "mlp"), ("mixtral", "mlp"), ("mixtral", "block_sparse_moe")])
def test_fused_experts_are_read_as_separate_ones(name: str, block: str, tmp_path: Path) -> None:
    """Files have a tensor for each expert; transformers 5 fuses them in memory."""
    from safetensors.torch import save_file

    theirs = write_folder(tmp_path, name)
    state = {key.replace(".mlp.", f".{block}."): value for key, value in theirs.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    assert any("experts.gate_up_proj" in key for key in state)
    assert difference(theirs, loaded(read(tmp_path)), random_ids(LENGTH)) < TOLERANCE


def test_a_mixture_runs_exactly_the_trained_number_of_experts(tmp_path: Path) -> None:
    write_folder(tmp_path, "olmoe")
    ffn = read(tmp_path).config.ffn
    assert (ffn.routing, ffn.controller, ffn.router_top_p, ffn.most_experts) == ("top_p", "fixed", 1.0, 3)
    assert not ffn.renormalize


def test_the_text_part_of_a_model_of_pictures_and_text_is_read(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    theirs = write_folder(tmp_path, "gemma3_text")
    state = load_file(tmp_path / "model.safetensors")
    state = {f"language_model.{key}": value for key, value in state.items()}
    state["vision_tower.vision_model.head.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps({**whole, "vision_config": {"hidden_size": 8}}))
    foreign = read(tmp_path)
    assert difference(theirs, loaded(foreign), random_ids(LENGTH)) < TOLERANCE
    assert any("pictures was left out" in note for note in foreign.notes)
