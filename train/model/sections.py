"""The sections of a model's config: attention, heads, experts, depth."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section
from .threshold_config import Controlled, Level

Routing = Literal["top_p", "top_k", "dense"]


HeadRouting = Literal["all", "top_k", "top_p", "adaptive"]


Positions = Literal["rope", "cope", "none"]


WindowKind = Literal["fixed", "length", "entropy", "learned"]


ExitCriterion = Literal["top_prob", "margin", "entropy", "router"]


SkippedKV = Literal["none", "project"]


class AttentionConfig(Section):
    """What attention knows of order, and how far it looks back; each for all layers, or a list of one a layer."""

    positions: Positions | tuple[Positions, ...] = "rope"
    """`rope` turns queries and keys; `cope` counts the tokens that matter in their context; `none` leaves order to the
    causal mask."""
    max_positions: int = Field(64, ge=2)
    """Contextual positions of `cope`; a token further away has the last of them."""
    window: int | tuple[int, ...] = 0
    """Tokens that a layer looks back at, its own included, the most of them where the window adapts; 0 is no window."""
    window_kind: WindowKind = "fixed"
    """`length`: a share of the tokens so far; `entropy`: held at a multiple of the tokens that attention spreads over;
    `learned`: by a score of each token."""
    window_least: int = Field(16, ge=1)
    """What a window that adapts never falls below."""
    window_share: float = Field(0.5, gt=0, le=1)
    """Share of the tokens so far, under `length`."""
    window_factor: float = Field(3.0, ge=1)
    """Window over exp(entropy of attention), under `entropy`."""
    window_ramp: int = Field(16, ge=1)
    """Tokens over which the edge of a `learned` window falls while training; at inference it is hard."""


class HeadsConfig(Controlled):
    """Which query heads a token uses (mixture of heads)."""

    routing: HeadRouting = "all"
    """`top_k` and `top_p` choose among the heads that are not shared; `adaptive` has none shared and lets a score of
    the token say how many; `all` builds no router."""
    shared_heads: int = Field(0, ge=0)
    """Heads that every token uses."""
    heads_per_token: float | None = Field(None, ge=1)
    """The average that the controller holds in each layer, shared heads included; k itself under `top_k`. null takes
    three quarters."""
    least_heads: int = Field(1, ge=1)
    most_heads: int | None = Field(None, ge=1)
    """The fewest and the most of an `adaptive` token; null takes all."""
    head_top_p: Level = 0.6
    """The threshold itself where `controller` is `fixed`, its start where it is `learned` or `pi`."""


class FFNConfig(Controlled):
    """The feed-forward part of every block."""

    routing: Routing = "top_p"
    """`top_p`: as many experts as it takes to gather the mass; `top_k`: a fixed number; `dense`: one FFN, no router."""
    dim: int = Field(344, ge=1)
    """Hidden width of the one FFN when `routing` is `dense`."""
    num_experts: int = Field(8, ge=2)
    expert_dim: int = Field(216, ge=1)
    """Hidden width of one expert."""
    shared_expert_dim: int = Field(0, ge=0)
    """Hidden width of an expert that every token uses; 0 builds none."""
    experts_per_token: float = Field(1.6, ge=1)
    """The average that the controller holds in each layer (`top_p`), or k itself (`top_k`)."""
    renormalize: bool = True
    """Divide the routing weights of the chosen experts by their sum."""
    router_top_p: Level = 0.4
    """The threshold itself where `controller` is `fixed` (Huang et al. 2024 use 0.4), its start where it is `learned`
    or `pi`."""

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.routing != "top_p":
            self.refuse_control(f"routing {self.routing} has no threshold")
        if self.routing == "dense":
            return self
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} but num_experts is only {self.num_experts}"
            )
        if self.routing == "top_k" and self.experts_per_token != int(self.experts_per_token):
            raise ValueError(
                f"top_k needs a whole experts_per_token, found {self.experts_per_token}: say 2, or use top_p"
            )
        return self


class DepthConfig(Controlled):
    """Which layers a token runs: skipped by a router, or left out by an early exit."""

    layers_share: float = Field(1.0, gt=0, le=1)
    """Share of the tokens that run each routed block (all but the first and the last); 1 builds no depth router."""
    depth_threshold: Level = 0.5
    """The threshold itself where `controller` is `fixed`, its start where it is `learned` or `pi`."""
    skipped_kv: SkippedKV = "project"
    """Keys and values of a skipped token: `none` leaves it out of that layer's cache, `project` writes them from its
    frozen state."""
    ema: float = Field(0.6, ge=0, lt=1)
    exit_layers: tuple[int, ...] = ()
    """Layers after which a token may leave, each before the last."""
    exit_criterion: ExitCriterion = "top_prob"
    """What must pass the exit threshold: the highest probability, its lead over the second, 1 - entropy / log V, or
    the score of a router that learns whether the last layer would choose the same."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the sequences that leave out the last layer while training; earlier layers less (LayerSkip)."""
    layer_dropout_curriculum: Literal["constant", "exponential"] = "constant"
    """`exponential`: from nothing at the start of the run to `layer_dropout` at its end."""

    @model_validator(mode="after")
    def _has_what_it_sets(self) -> Self:
        if self.layers_share == 1:
            self.refuse_control("layers_share 1 builds no depth router")
        if self.exit_criterion != "top_prob" and not self.exit_layers:
            raise ValueError(
                f"exit_criterion is {self.exit_criterion} but exit_layers is empty: name the layers after which tokens "
                "may leave, or leave it out"
            )
        return self
