"""The shape of a model: what is built, and what its controllers hold."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Routing = Literal["top_p", "top_k", "dense"]
SkippedKV = Literal["none", "project"]


class Section(BaseModel):
    """A part of the config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FFNConfig(Section):
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
    controller: Literal["quantile", "fixed"] = "quantile"
    router_top_p: float = Field(0.4, gt=0, le=1)
    """The threshold itself where `controller` is `fixed` (Huang et al. 2024 use 0.4)."""
    ema: float = Field(0.7, ge=0, lt=1)
    """Decay per step of the quantile table; a slow table lags a router that sharpens."""

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
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


class DepthConfig(Section):
    """Which layers a token runs: skipped by a router, or left out by an early exit."""

    layers_share: float = Field(1.0, gt=0, le=1)
    """Share of the tokens that run each routed block (all but the first and the last); 1 builds no depth router."""
    skipped_kv: SkippedKV = "project"
    """Keys and values of a skipped token: `none` leaves it out of that layer's cache, `project` writes them from its
    frozen state."""
    ema: float = Field(0.6, ge=0, lt=1)
    exit_layers: tuple[int, ...] = ()
    """Layers after which a token may leave, each before the last."""


class ModelConfig(Section):
    """A decoder: pre-norm, RoPE, grouped-query attention with QK-norm, experts, optional depth routing."""

    vocab_size: int = Field(0, ge=0)
    """0 takes the tokenizer's; a larger number than the tokenizer's pads the vocabulary."""
    context_length: int = Field(256, ge=8)
    dim: int = Field(128, ge=8)
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    num_kv_heads: int = Field(2, ge=1)
    head_dim: int = Field(0, ge=0)
    """Width of one head; 0 takes dim // num_heads."""
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    tie_embeddings: bool = False
    ffn: FFNConfig = FFNConfig()
    depth: DepthConfig = DepthConfig()

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads}), or set head_dim")
        if self.width_of_head % 2:
            raise ValueError(f"heads are {self.width_of_head} wide; rotary positions need an even width")
        if self.depth.layers_share < 1.0 and self.num_layers < 3:
            raise ValueError(
                f"layers_share is {self.depth.layers_share} but num_layers is {self.num_layers}: the first and the "
                "last block always run, so a depth router needs at least 3; or set layers_share to 1"
            )
        for layer in self.depth.exit_layers:
            if not 0 <= layer < self.num_layers - 1:
                raise ValueError(f"exit_layers names layer {layer}; an exit needs 0 <= layer < {self.num_layers - 1}")
        if list(self.depth.exit_layers) != sorted(set(self.depth.exit_layers)):
            raise ValueError(f"exit_layers must rise without repeats, found {list(self.depth.exit_layers)}")
        return self

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    @property
    def num_experts(self) -> int:
        """Experts per layer; a dense FFN counts as one."""
        return 1 if self.ffn.routing == "dense" else self.ffn.num_experts

    def has_depth_router(self, layer: int) -> bool:
        """The first and the last block always run, so they have none."""
        return self.depth.layers_share < 1.0 and 0 < layer < self.num_layers - 1

    @property
    def adapts_depth(self) -> bool:
        """Whether any token can leave out a layer."""
        return bool(self.depth.exit_layers) or any(self.has_depth_router(i) for i in range(self.num_layers))
