"""A checkpoint from before heads, positions, windows and learned thresholds loads and gives the same logits."""

import json

import pytest
import torch
from support.models import busy_thresholds, decisions, tiny_ids

from adaptive_lm.train.model import ModelConfig, Transformer

CONFIG = """{"vocab_size":29,"context_length":32,"dim":32,"num_layers":4,"num_heads":4,"num_kv_heads":2,"head_dim":0,
"rope_theta":10000.0,"norm_eps":0.00001,"tie_embeddings":false,"ffn":{"routing":"top_p","dim":344,"num_experts":4,
"expert_dim":12,"shared_expert_dim":0,"experts_per_token":1.6,"renormalize":true,"controller":"quantile",
"router_top_p":0.4,"ema":0.7},"depth":{"layers_share":0.5,"skipped_kv":"none","ema":0.6,"exit_layers":[0,1,2]}}"""
"""As commit 508bce0 wrote it."""
BLOCK = {
    "attention_norm.weight": (32,),
    "attention.q.weight": (32, 32),
    "attention.kv.weight": (32, 32),
    "attention.o.weight": (32, 32),
    "attention.q_norm.weight": (8,),
    "attention.k_norm.weight": (8,),
    "ffn_norm.weight": (32,),
    "moe.gate_up": (4, 32, 24),
    "moe.down": (4, 12, 32),
    "moe.router.weight": (4, 32),
    "depth_router.weight": (32,),
    "depth_router.bias": (),
}
TABLES = ("moe.router.controller", "depth_router.controller")
LOGITS = [-0.7127541899681091, -1.488462209701538, -4.165337562561035, 0.8077090382575989, -0.6766198873519897]
HELD = [-0.9720616936683655, 2.0037810802459717, 2.604987621307373, 0.7123501300811768, 0.9850536584854126]
LEFT = "0 0 -1 -1 1 -1 0 -1 -1 2 -1 -1 0 0 -1 1 -1 0 -1 -1 0 -1 1 1 -1 -1 0 -1 -1 -1 1 -1 -1 0"
"""Results of commit 508bce0 for the weights below: logits 0 to 4 of the last token of text 1 at busy thresholds, the
same at the thresholds of its controllers, and the layer after which each token left."""


def old_state() -> dict[str, torch.Tensor]:
    """Draw the tensors of the checkpoint by name, in its order, as tests/support/models.py drew model 14."""
    generator = torch.Generator().manual_seed(14)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (29, 32)}
    for layer in range(4):
        routed = layer in (1, 2)
        block = {key: shape for key, shape in BLOCK.items() if routed or not key.startswith("depth_router")}
        shapes |= {f"layers.{layer}.{key}": shape for key, shape in block.items()}
    shapes |= {"norm.weight": (32,), "head.weight": (29, 32)}
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("norm.weight"):
            state[key] = 1 + 0.3 * noise
        elif key.endswith("bias"):
            state[key] = 0.2 * noise
        else:
            inputs = shape[-1] if len(shape) < 3 else shape[1]
            state[key] = (2.5 if key.startswith(("head", "embedding")) else 1.2) * inputs**-0.5 * noise
    for layer in range(4):
        for table in TABLES:
            if layer in (1, 2) or table != "depth_router.controller":
                initial = torch.tensor([0.25, 0.5, 0.75]) if "moe" in table else torch.full((2,), 0.5)
                values = torch.quantile(initial, torch.linspace(0, 1, 33))
                state[f"layers.{layer}.{table}.table"] = values
                state[f"layers.{layer}.{table}.num_updates"] = torch.tensor(0)
    return state


@pytest.fixture(scope="module")
def old() -> Transformer:
    model = Transformer(ModelConfig.model_validate_json(CONFIG)).eval()
    model.load_state_dict(old_state())  # strict: no name is missing and none is left over
    return model


def test_a_config_from_before_reads_as_a_model_with_all_heads_and_no_windows(old: Transformer) -> None:
    config = old.config
    assert (config.heads.routing, config.attention.positions, config.attention.window) == ("all", "rope", 0)
    assert (config.depth.exit_criterion, config.ffn.per_token, config.ffn.scope) == ("top_prob", False, "layer")
    written, before = json.loads(config.model_dump_json()), json.loads(CONFIG)
    assert written["attention"]["rope"]["theta"] == before.pop("rope_theta")
    for section, fields in before.items():
        kept = {key: written[section][key] for key in fields} if isinstance(fields, dict) else written[section]
        assert kept == fields, section


def test_a_checkpoint_from_before_decides_and_says_what_it_said(old: Transformer) -> None:
    with torch.no_grad():
        out = old(tiny_ids(), busy_thresholds(old.config))
    assert " ".join(map(str, out.exit_layer.flatten().tolist())) == LEFT
    assert out.logits[1, -1, :5].tolist() == pytest.approx(LOGITS, abs=2e-5)


def test_a_checkpoint_from_before_is_held_by_its_controllers_as_it_was(old: Transformer) -> None:
    with torch.no_grad():
        out = old(tiny_ids())
    found = decisions(out)
    assert found["layers_run"].sum((1, 2)).tolist() == [34, 19, 17, 34]
    assert found["selected_experts"].sum((1, 2, 3)).tolist() == [34, 20, 18, 37]
    assert out.logits[1, -1, :5].tolist() == pytest.approx(HELD, abs=2e-5)
