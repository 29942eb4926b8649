"""The sections of a model's config: attention, heads, experts, depth."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ...system.section import Section
from .rope import RopeConfig, Ropes
from .thresholds import Controlled, Level
from .zero_experts import ZeroExpertsConfig

Routing = Literal["top_p", "top_k", "relu", "dense"]
Score = Literal["softmax", "sigmoid"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
HeadRouting = Literal["all", "top_k", "top_p", "adaptive"]
Positions = Literal["rope", "cope", "none", "learned"]
QKNorm = Literal["none", "head", "full"]
NormKind = Literal["rms", "layer"]
NormPlace = Literal["pre", "post", "sandwich"]
WindowKind = Literal["fixed", "length", "entropy", "learned"]
ExitCriterion = Literal["top_prob", "margin", "entropy", "router"]
SkippedKV = Literal["none", "project"]


class AttentionConfig(Section):
    """Projections, positions and windows of attention."""

    positions: Positions | tuple[Positions, ...] = "rope"
    """Position encoding: `rope` rotates queries and keys; `cope` counts the tokens that matter in their context; `none`
    relies on the causal mask alone. One value for all layers, or a list with one per layer. `learned`, for all layers,
    adds a vector for each position to the embedding (GPT-2)."""
    rope: Ropes = RopeConfig()
    """Rotary positions. One section for all layers, or a list with one per layer."""
    qk_norm: QKNorm = "head"
    """RMSNorm of queries and keys before positions: `none`; `head`, each head by itself with one weight for all heads;
    `full`, all heads of a token together, which needs every head."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""
    o_bias: bool = False
    """Whether the output projection has a bias."""
    softcap: float = Field(0.0, ge=0, le=1e6)
    """Limit c of the attention scores, 0 to 1e6: a score s becomes c tanh(s / c), before positions of `cope` and the
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
    """`top_p`: as many experts as it takes to reach a probability mass. `top_k`: a fixed number. `relu`: the experts
    whose logit is above 0, which is also their weight; a token may have none (ReMoE). `dense`: one FFN, no router."""
    dim: int | tuple[int, ...] = 344
    """Hidden width of a dense FFN, at least 1, under `dense` and in `dense_layers`. One number for all layers, or a
    list with one per layer."""
    dense_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that have one dense FFN in a model with experts; in rising order."""
    activation: Activation = "silu"
    """Function of the hidden values: `silu`; `gelu`, exact; `gelu_tanh`, its approximation by tanh; `relu`."""
    gated: bool = True
    """Whether the hidden values are activation(gate) * up; false computes activation(up)."""
    bias: bool = False
    """Whether every matrix of experts, shared expert and dense FFN has a bias."""
    num_experts: int = Field(8, ge=2)
    """Number of experts per layer, at least 2."""
    expert_dim: int = Field(216, ge=1)
    """Hidden width of one expert."""
    shared_expert_dim: int = Field(0, ge=0)
    """Hidden width of an expert that every token uses; 0 builds none."""
    shared_gate: bool = False
    """Whether the output of the shared expert is multiplied by a sigmoid of the token."""
    zero_experts: ZeroExpertsConfig = ZeroExpertsConfig()
    """Experts without matrices that the router chooses among beside the others (MoE++)."""
    experts_per_token: float = Field(1.6, gt=0)
    """Average number of experts per token that the controller (`top_p`) or the L1 loss (`relu`) holds in each layer,
    without zero-computation experts; or the exact number (`top_k`), with them. 1 to `num_experts` or `most_experts`;
    under `relu` and with `zero_experts`, greater than 0."""
    most_experts: int | None = Field(None, ge=1)
    """Most experts of a token under `top_p`, 1 to `num_experts`: the candidates, those of highest score. The mass is
    then relative to the candidates, so that a `router_top_p` of 1 is top-k routing. null means all experts."""
    random_experts: tuple[int, int] | None = None
    """Least and most experts of a token in training, [1, k], at most `most_experts`: each token draws in each layer how
    many of its candidates may run, so that few of them are good too. null draws none; evaluation never does."""
    score: Score = "softmax"
    """Score of an expert, from the logits of the router: `softmax` over all experts, or `sigmoid` of its own."""
    renormalize: bool = True
    """Whether the routing weights of the chosen experts are divided by their sum; false, and the default, under
    `relu`."""
    router_bias: bool = False
    """Whether the router adds a bias to its logits."""
    task_bias: bool = False
    """Whether the router adds a learned bias for each task of `data.tasks`: gates per task (MMoE, Ma et al. 2018). An
    exported model has the gates of one task: `adaptive export --task NAME`."""
    selection_bias: bool = False
    """Whether a bias is added to the scores for the choice of experts alone, not for their weights (DeepSeek-V3).
    Training does not change it."""
    router_top_p: Level = 0.4
    """Probability mass that the chosen experts must reach, greater than 0, at most 1: the threshold itself where
    `controller` is `fixed` (Huang et al. 2024 use 0.4), its starting value where it is `learned` or `pi`. A number, a
    list with one per layer, or `{first, last}` for a line over the layers."""

    @model_validator(mode="before")
    @classmethod
    def _relu_gates_are_weights(cls, values: Any) -> Any:
        """Let `renormalize` be false by default under `relu`: divided by their sum, gates could all shrink to 0."""
        if isinstance(values, Mapping) and values.get("routing") == "relu" and "renormalize" not in values:
            return {**values, "renormalize": False}
        return values

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        for width in (self.dim,) if isinstance(self.dim, int) else self.dim:
            if width < 1:
                raise ValueError(f"dim holds {width}; expected at least 1")
        if self.routing != "top_p":
            self.refuse_control(f"routing {self.routing} has no threshold")
        if self.routing == "dense":
            self._refuse(OF_EXPERTS, "routing is dense: choose top_p or top_k")
            return self
        if self.routing == "relu":
            self._refuse(OF_SELECTION, "routing is relu, where the sign of a logit decides")
            if self.renormalize:
                raise ValueError("renormalize is true, but under relu the gates are the weights; leave it out")
        if self.routing == "top_k":
            self._refuse(
                ("most_experts", "random_experts"),
                "under top_k, experts_per_token is the number of experts of every token",
            )
        if self.shared_gate and not self.shared_expert_dim:
            raise ValueError("shared_gate is true, but shared_expert_dim 0 builds no shared expert; set its width")
        if self.has_zero_experts and self.routing == "relu":
            raise ValueError(
                "zero_experts is set, but under relu a token can have no expert at all; leave zero_experts out, or set "
                "routing to top_p"
            )
        if self.has_zero_experts and self.most_experts is not None:
            raise ValueError("zero_experts and most_experts exclude each other; leave one of them out")
        if self.experts_per_token < 1 and not (self.has_zero_experts or self.routing == "relu"):
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, but every token takes at least one expert: set 1 or "
                "more, or add zero_experts, or set routing to relu"
            )
        if self.candidates > self.num_experts:
            raise ValueError(
                f"most_experts is {self.most_experts} but num_experts is only {self.num_experts}; lower the first or "
                "raise the second"
            )
        if self.experts_per_token > self.candidates:
            name = "num_experts" if self.most_experts is None else "most_experts"
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} but {name} is only {self.candidates}; "
                "lower the first or raise the second"
            )
        self._fit_random()
        if self.routing == "top_k" and self.experts_per_token != int(self.experts_per_token):
            raise ValueError(
                f"top_k needs a whole experts_per_token, found {self.experts_per_token}: set it to "
                f"{max(round(self.experts_per_token), 1)}, or use top_p"
            )
        return self

    def _fit_random(self) -> None:
        """Raise ValueError where `random_experts` does not fit the candidates or the controller."""
        if self.random_experts is None:
            return
        least, most = self.random_experts
        if self.most_experts is None:
            raise ValueError("random_experts draws among the candidates of a token: set most_experts, or leave it out")
        if not 1 <= least <= most <= self.most_experts:
            raise ValueError(
                f"random_experts is {[least, most]}; expected two numbers from 1 to most_experts "
                f"({self.most_experts}), the smaller first, as in [1, {self.most_experts}]"
            )
        if self.controller in ("pi", "learned") or self.per_token:
            kind = "per_token" if self.per_token else f"controller {self.controller}"
            raise ValueError(
                f"random_experts and {kind} exclude each other, since it would make up for the draws; set controller "
                "to fixed or quantile and per_token to false, or leave random_experts out"
            )

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raise ValueError for a field that is set although nothing would read it."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is set, but {why}, or leave {name} out")

    @property
    def candidates(self) -> int:
        """Most experts that a token can use in a layer with experts."""
        return self.most_experts or self.num_experts

    @property
    def has_zero_experts(self) -> bool:
        """Whether there are zero-computation experts."""
        return self.zero_experts.total > 0

    @property
    def num_logits(self) -> int:
        """Outputs of the router: the experts, then the zero-computation experts."""
        return self.num_experts + self.zero_experts.total

    @property
    def least_experts(self) -> int:
        """Fewest experts of a token in a layer with experts that it runs, without zero-computation experts."""
        return 0 if self.has_zero_experts or self.routing == "relu" else 1


OF_SELECTION = ("most_experts", "random_experts", "score", "selection_bias")
"""Fields of `FFNConfig` about the choice of experts by their rank."""
OF_EXPERTS = (*OF_SELECTION, "dense_layers", "zero_experts", "router_bias", "shared_gate")
"""Fields of `FFNConfig` that mean something only where there are experts, besides those with a size."""


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
