"""The sections of a model's config: attention, heads, experts, depth."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section
from .rope_config import RopeConfig, Ropes
from .threshold_config import Controlled, Level

Routing = Literal["top_p", "top_k", "dense"]
HeadRouting = Literal["all", "top_k", "top_p", "adaptive"]
Positions = Literal["rope", "cope", "none"]
QKNorm = Literal["none", "head", "full"]
WindowKind = Literal["fixed", "length", "entropy", "learned"]
ExitCriterion = Literal["top_prob", "margin", "entropy", "router"]
SkippedKV = Literal["none", "project"]


class AttentionConfig(Section):
    """Projections, positions and windows of attention."""

    positions: Positions | tuple[Positions, ...] = "rope"
    """Position encoding: `rope` rotates queries and keys; `cope` counts the tokens that matter in their context; `none`
    relies on the causal mask alone. One value for all layers, or a list with one per layer."""
    rope: Ropes = RopeConfig()
    """Rotary positions. One section for all layers, or a list with one per layer."""
    qk_norm: QKNorm = "head"
    """RMSNorm of queries and keys before positions: `none`; `head`, each head by itself with one weight for all heads;
    `full`, all heads of a token together, which needs every head."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""
    o_bias: bool = False
    """Whether the output projection has a bias."""
    softcap: float = Field(0.0, ge=0)
    """Limit c of the attention scores, at least 0: a score s becomes c tanh(s / c), before positions of `cope` and the
    mask. 0 means no limit."""
    max_positions: int = Field(64, ge=2)
    """Number of contextual positions under `cope`, at least 2. Tokens further away share the last one."""
    window: int | tuple[int, ...] = 0
    """Number of tokens that a layer looks back at, the current one included; the maximum where the window adapts. 0
    means no window. One value for all layers, or a list with one per layer."""
    window_kind: WindowKind = "fixed"
    """Choice of the window: `fixed`; `length`, a share of the tokens so far; `entropy`, a multiple of the number of
    tokens that attention spreads over; `learned`, from a score of each token."""
    window_least: int = Field(16, ge=1)
    """Smallest window that an adaptive `window_kind` may choose, in tokens, at least 1."""
    window_share: float = Field(0.5, gt=0, le=1)
    """Window as a share of the tokens so far under `length`, greater than 0, at most 1."""
    window_factor: float = Field(3.0, ge=1)
    """Window divided by exp(entropy of attention) under `entropy`, at least 1."""
    window_ramp: int = Field(16, ge=1)
    """Width in tokens, at least 1, of the soft edge of a `learned` window during training. At inference the edge is
    hard."""


class HeadsConfig(Controlled):
    """The choice of query heads per token (mixture of heads)."""

    routing: HeadRouting = "all"
    """`all` builds no router. `top_k` and `top_p` choose among the heads that are not shared. `adaptive` shares none; a
    score of the token decides how many run."""
    shared_heads: int = Field(0, ge=0)
    """Number of heads that every token uses, fewer than `num_heads`."""
    heads_per_token: float | None = Field(None, ge=1)
    """Average number of heads per token that the controller holds in each layer, shared heads included; under `top_k`,
    the exact number. null means three quarters of `num_heads`."""
    least_heads: int = Field(1, ge=1)
    """Fewest heads of a token under `adaptive`, at least 1."""
    most_heads: int | None = Field(None, ge=1)
    """Most heads of a token under `adaptive`; null means all."""
    head_top_p: Level = 0.6
    """Probability mass that the chosen heads must reach, greater than 0, at most 1: the threshold itself where
    `controller` is `fixed`, its starting value where it is `learned` or `pi`. A number, a list with one per layer, or
    `{first, last}` for a line over the layers."""


class FFNConfig(Controlled):
    """The feed-forward part of every block."""

    routing: Routing = "top_p"
    """`top_p`: as many experts as it takes to reach a probability mass. `top_k`: a fixed number. `dense`: one FFN, no
    router."""
    dim: int = Field(344, ge=1)
    """Hidden width of the single FFN under `dense`."""
    num_experts: int = Field(8, ge=2)
    """Number of experts per layer, at least 2."""
    expert_dim: int = Field(216, ge=1)
    """Hidden width of one expert."""
    shared_expert_dim: int = Field(0, ge=0)
    """Hidden width of an expert that every token uses; 0 builds none."""
    experts_per_token: float = Field(1.6, ge=1)
    """Average number of experts per token that the controller holds in each layer (`top_p`), or the exact number
    (`top_k`); 1 to `num_experts`."""
    renormalize: bool = True
    """Whether the routing weights of the chosen experts are divided by their sum."""
    router_top_p: Level = 0.4
    """Probability mass that the chosen experts must reach, greater than 0, at most 1: the threshold itself where
    `controller` is `fixed` (Huang et al. 2024 use 0.4), its starting value where it is `learned` or `pi`. A number, a
    list with one per layer, or `{first, last}` for a line over the layers."""

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.routing != "top_p":
            self.refuse_control(f"routing {self.routing} has no threshold")
        if self.routing == "dense":
            return self
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} but num_experts is only {self.num_experts}; "
                "lower the first or raise the second"
            )
        if self.routing == "top_k" and self.experts_per_token != int(self.experts_per_token):
            raise ValueError(
                f"top_k needs a whole experts_per_token, found {self.experts_per_token}: set it to "
                f"{round(self.experts_per_token)}, or use top_p"
            )
        return self


class DepthConfig(Controlled):
    """The layers that a token runs: a router may skip a layer, an early exit leaves out all that follow."""

    layers_share: float = Field(1.0, gt=0, le=1)
    """Share of the tokens that run each routed block (all but the first and the last), greater than 0, at most 1. 1
    builds no depth router."""
    depth_threshold: Level = 0.5
    """Score from which a token runs a layer, 0 to 1: the threshold itself where `controller` is `fixed`, its starting
    value where it is `learned` or `pi`. A number, a list with one per layer, or `{first, last}` for a line over the
    layers."""
    skipped_kv: SkippedKV = "project"
    """Keys and values of a token that skips a layer: `none` leaves it out of that layer's cache; `project` computes
    them from its unchanged hidden state."""
    ema: float = Field(0.6, ge=0, lt=1)
    """Decay per step of the quantile table of the depth routers, 0 to below 1; see `ffn.ema`."""
    exit_layers: tuple[int, ...] = ()
    """Layers, counted from 0, after which a token may leave; each before the last layer, in rising order."""
    exit_criterion: ExitCriterion = "top_prob"
    """The confidence that is compared with the exit threshold, 0 to 1: `top_prob`, the highest probability; `margin`,
    its lead over the second; `entropy`, 1 - entropy / log(vocabulary size); `router`, the score of a router that learns
    whether the last layer would choose the same token."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the training sequences that leave out the last layer, 0 to below 1; earlier layers are left out less
    often (LayerSkip)."""
    layer_dropout_curriculum: Literal["constant", "exponential"] = "constant"
    """`constant`: `layer_dropout` during the whole run. `exponential`: from 0 at the start to `layer_dropout` at the
    end."""

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
