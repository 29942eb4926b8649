"""How close each token of the torch model is to another decision. T tokens, B windows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...train.model import ModelOutput, ThresholdTensors, Transformer
from ...train.model.attention.heads import HeadRoutes
from ...train.model.attention.window import LEVELS
from ...train.model.block import LayerRouting
from ...train.model.routing.router import Routes
from ...train.model.routing.thresholded_router import shifted


def margins(out: ModelOutput, thresholds: ThresholdTensors, model: Transformer) -> Tensor:
    """Return for each token the distance of its closest decision to the threshold, (T,).

    What is not decided has no margin: a token that left, a layer that runs at any score, an exit that no token takes.
    """
    left = out.exit_layer.flatten()  # (T,), or of B windows (B*T,)
    closest = torch.full(left.shape, float("inf"))
    for i, layer in enumerate(out.routing):
        here = (left < 0) | (left >= i)
        if layer.depth is not None and thresholds.depth_threshold[i] > 0:
            margin = (layer.depth.scores - shifted(thresholds.depth_threshold[i], layer.depth.shift)).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
        for margin in _choices(layer, i, thresholds, model):
            closest = torch.where(layer.runs, closest.minimum(margin), closest)
        if i in out.exit_confidence and thresholds.exit_threshold[i] < 1:
            margin = (out.exit_confidence[i].flatten() - thresholds.exit_threshold[i]).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
    return closest


def _choices(layer: LayerRouting, i: int, thresholds: ThresholdTensors, model: Transformer) -> Iterator[Tensor]:
    """Yield the margins, (T,) each, of what a token decides inside a layer that it runs."""
    config = model.config
    if layer.routes is not None:
        routes, candidates = layer.routes, layer.routes.ranked.shape[1]
        yield _rank_margin(routes.ranking, routes.selected)
        relu = config.ffn.routing == "relu"
        if relu:
            yield routes.router_logits.abs().amin(-1)
        if (relu or config.ffn.routing == "top_p") and candidates > 1 and thresholds.router_top_p[i] < 1:
            limit = shifted(thresholds.router_top_p[i], routes.shift)
            yield _asked(routes.mass_before[:, 1:] - limit, routes)
        if candidates > 1 and thresholds.router_ratio is not None and thresholds.router_ratio[i] > 0:
            yield _asked(routes.ranked[:, 1:] / routes.ranked[:, :1] - thresholds.router_ratio[i], routes)
    if layer.heads is not None:
        yield _rank_margin(layer.heads.router_probs, layer.heads.selected_heads[:, config.heads.shared_heads :])
        if config.heads.routing != "top_k" and thresholds.head_top_p[i] < 1:
            yield _head_limit_margin(layer.heads, thresholds.head_top_p[i], model)
    if layer.windows is not None and layer.windows.scores is not None:
        score = LEVELS * layer.windows.scores
        yield (score - score.round().clamp(1, LEVELS - 1)).abs() / LEVELS


def _asked(distances: Tensor, routes: Routes) -> Tensor:
    """Return the least of the distances (T, ranks) of the ranks after the first, up to the first that is left out."""
    ranks = torch.arange(distances.shape[1], device=distances.device)
    asked = ranks < routes.selected.sum(-1, keepdim=True)
    return torch.where(asked, distances.abs(), torch.inf).amin(-1)


def _head_limit_margin(heads: HeadRoutes, level: Tensor, model: Transformer) -> Tensor:
    """Return the least distance to the threshold of the ranks that it decides about, (T,); inf where there are none."""
    shared, least, most = model.config.heads.shared_heads, model.config.least_heads, model.config.most_heads
    distance = (heads.mass_before - shifted(level, heads.shift)).abs()[:, least - shared : most - shared]
    return torch.cat([distance, distance.new_full((len(distance), 1), torch.inf)], -1).amin(-1)


def _rank_margin(probs: Tensor, selected: Tensor) -> Tensor:
    """Return the distance between the least probable choice and the most probable one not chosen, (T,)."""
    least = torch.where(selected, probs, torch.inf).amin(-1)
    most = torch.where(selected, -torch.inf, probs).amax(-1)
    return (least - most).abs()
