"""A router of each kind that compares scores with a threshold, and its input.

N tokens, D width, E experts, H heads.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive_lm.train.model import DepthConfig, FFNConfig
from adaptive_lm.train.model.attention.heads import HeadRouter
from adaptive_lm.train.model.routing.depth import DepthRouter
from adaptive_lm.train.model.routing.router import Router
from adaptive_lm.train.model.routing.thresholded_router import Thresholded
from support.models import variant

N, D, E, H = 512, 16, 8, 6
WANTED = {"experts": 1.7, "heads": 3.5, "adaptive": 3.0, "depth": 0.6}
LEAST = {"experts": 1, "heads": 3, "adaptive": 2, "depth": 0}
MOST = {"experts": E, "heads": H, "adaptive": 5, "depth": 1}
KINDS = list(WANTED)


def router_of(kind: str, wanted: float | None = None, **control: Any) -> Thresholded:
    """Return a router of a kind, with seeded weights."""
    wanted = WANTED[kind] if wanted is None else wanted
    heads = {"num_heads": H, "head_dim": 8, "num_kv_heads": 2, "dim": D}
    router: Thresholded
    if kind == "experts":
        router = Router(D, FFNConfig(num_experts=E, experts_per_token=wanted, **control))
    elif kind == "heads":
        fields = {"routing": "top_p", "shared_heads": 2, "heads_per_token": wanted, **control}
        router = HeadRouter(variant(heads=fields, **heads))
    elif kind == "adaptive":
        fields = {"routing": "adaptive", "least_heads": 2, "most_heads": 5, "heads_per_token": wanted, **control}
        router = HeadRouter(variant(heads=fields, **heads))
    else:
        router = DepthRouter(D, DepthConfig(layers_share=wanted, **control), 1e-5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in router.named_parameters():
            if not name.endswith("level_logit"):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return router


def used(routes: Any) -> Tensor:
    """Return the units of each token (N,): experts, heads or layers."""
    if hasattr(routes, "passes"):
        return routes.passes.float()
    chosen = routes.selected_heads if hasattr(routes, "selected_heads") else routes.selected_experts
    return chosen.sum(-1).float()


def stream(seed: int = 1) -> Iterator[Tensor]:
    """Yield batches of (N, D) without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(N, D, generator=generator)
