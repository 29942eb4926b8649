"""What training asks of the model: a gradient for everything, the same numbers when it recomputes, a float32 router."""

import copy

import pytest
import torch
from tiny_models import ADAPTS_DEPTH, CONFIGS, ROUTED, decisions, tiny_ids, tiny_model, variant
from torch import Tensor

from adaptive_lm.train.model import LossConfig, ModelOutput, Thresholds, Transformer, training_loss

SHOWN = torch.ones(2, 17, dtype=torch.bool)


def loss_and_gradients(
    model: Transformer, checkpoint_activations: bool
) -> tuple[ModelOutput, Tensor, dict[str, Tensor]]:
    out = model(tiny_ids(), checkpoint_activations=checkpoint_activations)
    loss, _ = training_loss(model, out, tiny_ids(1), SHOWN, LossConfig(router_entropy_loss=0.1))
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out, loss.detach(), gradients


@pytest.mark.parametrize("name", CONFIGS)
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
            assert (gradient.flatten(1).abs().amax(1) > 0).all(), f"{key}: an expert without a gradient"
        elif key.endswith(("q.weight", "kv.weight")):
            heads = gradient.view(-1, config.width_of_head, config.dim)  # (heads, W, D)
            assert (heads.flatten(1).abs().amax(1) > 0).all(), f"{key}: a head without a gradient"
        elif key.endswith("o.weight"):
            heads = gradient.view(config.dim, config.num_heads, config.width_of_head)
            assert (heads.abs().amax((0, 2)) > 0).all(), f"{key}: a head without a gradient"
        elif key.endswith("router.weight") and gradient.ndim == 2:
            assert (gradient.abs().amax(1) > 0).all(), f"{key}: an expert whose score learns nothing"
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


@pytest.mark.parametrize("name", CONFIGS)
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


def test_recomputing_activations_keeps_fewer_of_them() -> None:
    """Else the test above would compare a model with itself."""
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            copy.deepcopy(tiny_model("top_p")).train()(tiny_ids(), checkpoint_activations=recompute)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize("name", ROUTED)
def test_the_router_stays_float32_under_bf16_autocast(name: str) -> None:
    """T43: in bf16 its logits would be off by about 1e-2."""
    model = tiny_model(name)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.layers:
        block.moe.router.register_forward_hook(lambda router, given, routes: seen.append((given[0], router.weight)))
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(tiny_ids())
    finally:
        for block in model.layers:
            block.moe.router._forward_hooks.clear()
    assert len(seen) == len(out.routing)
    for (x, weight), layer in zip(seen, out.routing, strict=True):
        routes = layer.routes
        assert {part.dtype for part in routes if part.dtype != torch.bool} == {torch.float32}
        exact = x.double() @ weight.double().t()
        torch.testing.assert_close(routes.router_logits.double(), exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(routes.router_probs.double(), exact.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ADAPTS_DEPTH if CONFIGS[name].has_depth_router(1)])
def test_the_depth_router_stays_float32_under_bf16_autocast(name: str) -> None:
    model = tiny_model(name)
    router, seen = model.layers[1].depth_router, []
    hook = router.register_forward_hook(lambda router, given, scored: seen.append((given[0], *scored)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(tiny_ids())
    hook.remove()
    ((x, logits, scores),) = seen
    assert logits.dtype == scores.dtype == torch.float32
    x, weight = x.double(), router.weight.double()
    normed = x / (x.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    torch.testing.assert_close(logits.double(), normed @ weight + router.bias.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_autocast_stays_near_float32(name: str) -> None:
    """Where every layer and expert runs, so that no decision can fall the other way; gradients come back in float32."""
    losses, gradients = [], []
    for half in (False, True):
        model = copy.deepcopy(tiny_model(name)).train()
        ones = torch.ones(model.config.num_layers)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = model(tiny_ids(), Thresholds(ones, 0 * ones, ones))
            loss, _ = training_loss(model, out, tiny_ids(1), SHOWN, LossConfig(router_entropy_loss=0.1))
        loss.backward()
        assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}
        losses.append(loss.item())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.998
