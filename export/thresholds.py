"""The thresholds of a model and its dial, from the levels of its controllers. L layers, D width, V vocabulary."""

import numpy as np
import torch
from torch import Tensor

from ..runtime.format.manifest import DialTable, DialTarget
from ..train.model import ThresholdTensors, Transformer
from ..train.model.routing.controllers import GRID_POINTS
from ..train.model.routing.thresholded_router import shifted

TIE_DISTANCE = 1e-4
"""Distance to keep between a level and the scores near it: ten times the margin of a near tie, and less than the
precision to which a threshold is known."""


def trained_thresholds(model: Transformer) -> ThresholdTensors:
    """Return the levels of the controllers, those of heads moved off the scores that they were taken from."""
    current = model.default_thresholds().given()
    levels = ThresholdTensors(**{name: level.detach() for name, level in current.items()})  # some may be learned
    scores, none = scores_of_ids(model), torch.empty(0)
    heads = [clear_of(float(level), none if layer else scores) for layer, level in enumerate(levels.head_top_p)]
    return levels._replace(head_top_p=torch.tensor(heads))


def dial(model: Transformer) -> DialTable:
    """Return the dial: for each wanted average the threshold of each layer, from the controllers' quantile tables."""
    config = model.config
    experts: list[list[float] | None] = []
    heads: list[list[float] | None] = []
    depth: list[list[float] | None] = []
    chooses = config.heads.routing in ("top_p", "adaptive") and config.least_heads < config.most_heads
    for block in model.blocks():
        routed = block.moe is not None and config.ffn.routing in ("top_p", "relu")
        experts.append(_table(block.moe.router.controller.table) if routed and block.moe else None)
        router = block.attention.head_router if chooses and block.attention is not None else None
        if router is None:
            heads.append(None)
        else:  # a level of 1 is every head, whatever the largest score seen
            scores = torch.empty(0) if heads else scores_of_ids(model)
            levels = [clear_of(float(level), scores) for level in router.controller.table[:-1]]
            heads.append([*_table(torch.tensor(levels).cummax(0).values), 1.0])
        # the manifest lists the share that runs, the controller the share below the threshold
        depth.append(_table(block.depth_router.controller.table.flip(0)) if block.depth_router else None)
    return DialTable(
        grid=np.linspace(0, 1, GRID_POINTS).tolist(),
        router_top_p=experts,
        depth_threshold=depth,
        head_top_p=heads,
        target=DialTarget(
            experts_per_token=1.0 if config.ffn.routing == "dense" else config.ffn.experts_per_token,
            layers_share=config.depth.layers_share,
            heads_per_token=config.heads_per_token if config.heads.routing != "all" else None,
        ),
    )


def scores_of_ids(model: Transformer) -> Tensor:
    """Return all scores that the heads of the first layer can have, as its level sees them, sorted (n,).

    They are finite in number: before the first attention a router sees nothing but the id of the token. With learned
    positions it sees the position too; then none are returned, nor where the first layer has a recurrent mixer.
    """
    block = model.blocks()[0]
    router = None if block.attention is None else block.attention.head_router
    if router is None or model.learned_positions is not None:
        return torch.empty(0)
    with torch.no_grad():
        embedded = model.embed(torch.arange(model.config.vocab_size)[:, None]).flatten(0, 1)  # (V, D)
        routes = router(block.attention_norm(embedded), torch.ones(()))
    moved = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
    return moved.flatten().sort().values


def clear_of(level: float, scores: Tensor) -> float:
    """Return a slightly higher level of heads that none of `scores` (n,) is close to; 1 stays 1.

    All occurrences of a frequent token have the same score in the first layer, and a quantile of the scores is often
    exactly that score. As a level it would leave the token undecided: one in twenty tokens was a near tie.
    """
    if level >= 1:
        return level  # every head
    candidates = [min(level + TIE_DISTANCE * (1 + step / 4), 1 - 2**-20) for step in range(80)]
    free = (each for each in candidates if not len(scores) or (scores - each).abs().min() >= TIE_DISTANCE / 2)
    return next(free, candidates[0])


def _table(table: Tensor) -> list[float]:
    return [float(value) for value in table.clamp(0, 1)]
