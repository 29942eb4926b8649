"""Training: a gradient for every weight, equal results with recomputing, routers in float32."""

import copy
from typing import Any

import pytest
import torch
from support.counting import Counted
from support.cover import rest_slow
from support.models import CONFIGS, COVER, busy_thresholds, decisions, even_thresholds, tiny_ids, tiny_model, variant
from torch import Tensor

from adaptive_lm.train.model import LossConfig, ModelOutput, Transformer, training_loss
from adaptive_lm.train.model.attention import attention

BEHIND_ZERO = tuple(f"mixer.{name}" for name in ("mu_w", "mu_a", "mu_g", "w2.weight", "a2.weight"))
"""Weights of `rwkv7` beside a low-rank matrix that starts at 0, as its authors do: they learn from the second step."""
SHOWN = torch.ones(2, 17, dtype=torch.bool)


def loss_and_gradients(
    model: Transformer, checkpoint_activations: bool
) -> tuple[ModelOutput, Tensor, dict[str, Tensor]]:
    out = model(tiny_ids(), checkpoint_activations=checkpoint_activations)
    loss, _ = training_loss(model, out, tiny_ids(1), SHOWN, LossConfig(router_entropy_loss=0.1))
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out, loss.detach(), gradients


@pytest.mark.parametrize("name", rest_slow(CONFIGS, COVER))
def test_everything_gets_a_gradient_at_the_start(name: str) -> None:
    """T41: every expert, every head, every layer, every column of a router, from the first step."""
    torch.manual_seed(0)
    model = Transformer(CONFIGS[name])
    out = model(tiny_ids(batch=8))
    counted = torch.ones(8, 17, dtype=torch.bool)
    training_loss(model, out, tiny_ids(1, batch=8), counted, LossConfig())[0].backward()
    config = model.config
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        gradient = weight.grad
        if key.endswith(("moe.gate_up", "moe.down")):
            routes = out.routing[int(key.split(".")[1])].routes
            assert routes is not None
            chosen = routes.selected_experts.any(0)  # of 300 experts, few texts choose every one
            assert chosen.all() or config.num_experts == 300
            assert (gradient.flatten(1).abs().amax(1) > 0)[chosen].all(), f"{key}: an expert without a gradient"
        elif key.endswith(("q.weight", "kv.weight")):
            heads = gradient.view(-1, config.resolved_head_dim, config.dim)  # (heads, W, D)
            assert (heads.flatten(1).abs().amax(1) > 0).all(), f"{key}: a head without a gradient"
        elif key.endswith("o.weight"):
            heads = gradient.view(config.dim, config.num_heads, -1)
            assert (heads.abs().amax((0, 2)) > 0).all(), f"{key}: a head without a gradient"
        elif key.endswith(("router.weight", "balance")) and gradient.ndim == 2:
            # the score of a single shared head has no effect: its softmax is over one
            learns = gradient[1:] if config.heads.shared_heads == 1 and "head_router.weight" in key else gradient
            assert (learns.abs().amax(1) > 0).all(), f"{key}: an expert or a head whose score learns nothing"
        elif key.endswith("position_embedding"):
            reached = gradient[:-1] if config.has_windows else gradient  # a window may be too short for the last
            assert (reached.abs().amax(1) > 0).all(), f"{key}: a position that no token has"
        elif key.endswith(BEHIND_ZERO):
            assert not gradient.any(), f"{key} learns at once: take it out of BEHIND_ZERO"
        else:
            assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_start_at_the_documented_scales(tied: bool) -> None:
    torch.manual_seed(0)
    D, F, L = 64, 48, 4
    ffn = {"expert_dim": F, "shared_expert_dim": F}
    depth = {"layers_share": 0.5}
    model = Transformer(variant(ffn, depth, dim=D, vocab_size=512, num_layers=L, tie_embeddings=tied))
    silent = 1 / (8 * (2 * L) ** 0.5)
    block = "layers.1"
    expected = {
        "embedding.weight": 0.02 if tied else 1.0,
        "head.weight": 0.02 if tied else 0.1 * D**-0.5,
        f"{block}.attention.q.weight": D**-0.5,
        f"{block}.attention.kv.weight": D**-0.5,
        f"{block}.attention.o.weight": D**-0.5 * silent,
        f"{block}.moe.gate_up": D**-0.5,
        f"{block}.moe.down": F**-0.5 * silent,
        f"{block}.moe.shared.gate_up.weight": D**-0.5,
        f"{block}.moe.shared.down.weight": F**-0.5 * silent,
        f"{block}.moe.router.weight": 0.02,
    }
    weights = model.state_dict()
    for name, scale in expected.items():
        assert weights[name].std().item() == pytest.approx(scale, rel=0.15), name
    assert weights[f"{block}.depth_router.weight"].std().item() == pytest.approx(0.02, rel=0.3)
    assert weights[f"{block}.depth_router.bias"] == 0
    assert all((value == 1).all() for name, value in weights.items() if name.endswith("norm.weight"))


@pytest.mark.parametrize("name", COVER)
def test_recomputing_activations_changes_no_bit(name: str) -> None:
    """T38: the same loss, the same gradients, the same routes, tolerance 0."""
    kept, again = (copy.deepcopy(tiny_model(name)).train() for _ in range(2))
    out, loss, gradients = loss_and_gradients(kept, checkpoint_activations=False)
    out_again, loss_again, gradients_again = loss_and_gradients(again, checkpoint_activations=True)
    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    for key, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[key]), key
    for decision, found in decisions(out).items():
        assert torch.equal(found, decisions(out_again)[decision]), decision
    kept.observe(out)
    again.observe(out_again)
    for key, buffer in kept.named_buffers():
        assert torch.equal(buffer, dict(again.named_buffers())[key]), key


def test_recomputing_activations_leaves_out_the_same_layers() -> None:
    """T38, with layer dropout: the random draw is not repeated."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Transformer(variant(depth={"layer_dropout": 0.5})).train()
        out, loss, gradients = loss_and_gradients(model, checkpoint_activations=recompute)
        assert not decisions(out)["layers_run"].all()
        found.append((decisions(out)["layers_run"], loss, *gradients.values()))
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def test_recomputing_activations_keeps_fewer_of_them() -> None:
    """Recomputation stores less, so the test above does not compare a model with itself."""
    stored: dict[bool, int] = {}
    for recompute in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            copy.deepcopy(tiny_model("top_p")).train()(tiny_ids(), checkpoint_activations=recompute)
        stored[recompute] = sum(sizes)
    assert stored[True] < stored[False] / 3


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_recomputing_activations_decides_no_route_twice(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    """T38: ranks, comparisons with thresholds and attention run once a step, though the rest runs again.

    Compiled blocks: `test_compile.py`.
    """
    monkeypatch.setattr(attention, "LEAST_TIME", 1)
    runs = {}
    for recompute in (False, True):
        with Counted() as counted, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss_and_gradients(copy.deepcopy(tiny_model("both_none")).train(), checkpoint_activations=recompute)
        runs[recompute] = counted.runs
    for name in ["aten.rsqrt.default", "aten.mm.default", "adaptive_lm.experts_forward.default"]:
        assert runs[True][name] > runs[False][name], "norms, products and experts are what is computed again"
    fused = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    core = "adaptive_lm.attention_forward.default" if half else fused
    for name in ["aten.sort.stable", "aten.lt.Tensor", "aten.ge.Tensor", core]:
        assert runs[False][name] == runs[True][name] > 0, name


@pytest.mark.parametrize("name", ["top_p", "both_none", "dense_both_none"])
def test_recomputing_activations_in_bf16_changes_no_bit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """T38, with attention by blocks, which keeps no score with or without."""
    monkeypatch.setattr(attention, "LEAST_TIME", 1)
    found = []
    for recompute in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model = copy.deepcopy(tiny_model(name)).train()
            out, loss, gradients = loss_and_gradients(model, checkpoint_activations=recompute)
        found.append((out.logits, loss, *decisions(out).values(), *gradients.values()))
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def heard(module: torch.nn.Module) -> tuple[list[tuple[Tensor, Any]], Any]:
    """Record the inputs and outputs of a module; return them and the hook to remove."""
    seen: list[tuple[Tensor, Any]] = []
    return seen, module.register_forward_hook(lambda _, given, gave: seen.append((given[0], gave)))


@pytest.mark.parametrize("part", ["moe.router", "attention.head_router", "depth_router", "attention.window_router"])
@pytest.mark.parametrize("name", COVER)
def test_a_router_stays_float32_under_bf16_autocast(name: str, part: str) -> None:
    """T43: in bf16 its logits would be off by about 1e-2. Contextual positions are tested in test_attention.py."""
    model = tiny_model(name)
    routers = [module for key, module in model.named_modules() if key.endswith(f".{part}")]
    if not routers:
        return
    heard_of = [heard(router) for router in routers]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(tiny_ids(), busy_thresholds(model.config))
    for (seen, hook), router in zip(heard_of, routers, strict=True):
        hook.remove()
        assert len(seen) in (1, model.config.recursion.times)
        x, found = seen[-1]
        parts = [found] if isinstance(found, Tensor) else [value for value in found if value is not None]
        tensors = [each for part in parts for each in ([part] if isinstance(part, Tensor) else part)]
        assert {value.dtype for value in tensors} <= {torch.float32, torch.bool}
        x, weight = x.double(), router.weight.double()
        if part == "depth_router":
            x = x / (x.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
        bias = getattr(router, "bias", None)
        logits = (x @ weight.t() if weight.ndim == 2 else x @ weight) + (0 if bias is None else bias.double())
        if part == "attention.window_router":
            torch.testing.assert_close(found.double(), logits.sigmoid(), rtol=0, atol=1e-6)
        else:
            mine = logits[:, model.config.heads.shared_heads :] if "head_router" in part else logits
            torch.testing.assert_close(found[0].double(), mine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["exit_router", "everything_none"])
def test_an_exit_router_stays_float32_under_bf16_autocast(name: str) -> None:
    model = tiny_model(name)
    seen, hook = heard(model.exit_routers["0"])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(tiny_ids(), busy_thresholds(model.config))
    hook.remove()
    ((hidden, score),) = seen
    assert score.dtype == out.exit_confidence[0].dtype == torch.float32
    router = model.exit_routers["0"]
    exact = (hidden.double() @ router.weight.double() + router.bias.double()).sigmoid()
    torch.testing.assert_close(score.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", rest_slow(COVER, COVER[::3]))
def test_bf16_autocast_stays_near_float32(name: str) -> None:
    """On a text whose decisions equal those in float32; gradients are returned in float32.

    With layers as quiet as in training: in the loud ones of these models any rounding grows from layer to layer.
    """
    model = copy.deepcopy(tiny_model(name)).train()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("o.weight", "down", "down.weight", "post_norm.weight", "post_norm.bias")):
                weight.mul_(0.15)
    for seed in range(20):
        losses, gradients, decided = [], [], []
        for half in (False, True):
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                out = model(tiny_ids(seed), even_thresholds(model.config.num_layers))
                loss, _ = training_loss(model, out, tiny_ids(1), SHOWN, LossConfig(router_entropy_loss=0.1))
            loss.backward()
            # the thresholds are given here, so a learned one has no gradient
            moved = [weight for key, weight in model.named_parameters() if not key.endswith("level_logit")]
            assert {weight.grad.dtype for weight in moved} == {torch.float32}
            losses.append(loss.item())
            gradients.append(torch.cat([weight.grad.flatten() for weight in moved]))
            decided.append(decisions(out))
        if all(torch.equal(found, decided[1][decision]) for decision, found in decided[0].items()):
            break
    else:
        pytest.fail("in bf16 some decision falls otherwise in each of twenty texts")
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.998
