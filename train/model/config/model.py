"""The config of a model: its shape, and the averages that its controllers maintain."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from ...system.section import Section
from ..mixers.config import MixerKind, RecurrenceConfig
from ..mixers.rules import fit_mixers, fit_retnet
from ..recursion import RecursionConfig
from .rope import RopeConfig
from .rules import fit_attention, fit_depth, fit_ffn, fit_heads, fit_recursion, one_per_layer
from .sections import AttentionConfig, DepthConfig, FFNConfig, HeadsConfig, NormKind, NormPlace, Positions


class ModelConfig(Section):
    """A decoder with grouped-query attention, or with mixers that keep a recurrent state, in some or all layers.

    Each token may choose its experts, heads, window and layers.
    """

    vocab_size: int = Field(0, ge=0)
    """Number of tokens in the vocabulary; 0 takes the tokenizer's. A number larger than the tokenizer's pads it."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks that have gates of their own, with `ffn.task_bias`; set by the program from `data.tasks`."""
    context_length: int = Field(256, ge=8)
    """Longest sequence in tokens, at least 8."""
    dim: int = Field(128, ge=8)
    """Width of the hidden state, at least 8."""
    num_layers: int = Field(4, ge=1)
    """Number of blocks."""
    num_heads: int = Field(4, ge=1)
    """Number of query heads per layer."""
    num_kv_heads: int = Field(2, ge=1)
    """Number of key/value heads per layer; `num_heads` must be a multiple of it."""
    head_dim: int = Field(0, ge=0)
    """Width of one head; 0 means dim / num_heads."""
    norm: NormKind = "rms"
    """Normalisation of the hidden state: `rms`, by its root mean square (RMSNorm); `layer`, by mean and standard
    deviation, with a bias (LayerNorm)."""
    norm_place: NormPlace = "pre"
    """Place of the norms of attention and feed-forward part: `pre`, on the input (Llama); `post`, on the output, before
    it is added to the hidden state (OLMo2); `sandwich`, on both (Gemma 2 and 3)."""
    parallel_residual: bool = False
    """Whether attention and feed-forward part read the same hidden state (GPT-NeoX); else the feed-forward part reads
    the state after attention."""
    norm_eps: float = Field(1e-5, gt=0)
    """Term added to the mean square in RMSNorm, to the variance in LayerNorm, greater than 0."""
    tie_embeddings: bool = False
    """Whether the output head shares its weights with the embedding."""
    embedding_scale: float = Field(1.0, gt=0, le=1e6)
    """Factor of the embedded tokens, greater than 0, at most a million (Gemma: the square root of `dim`)."""
    logits_softcap: float = Field(0.0, ge=0, le=1e6)
    """Largest absolute value c of a logit, which becomes c tanh(logit / c) (Gemma 2); at most a million, 0 for none."""
    mixers: MixerKind | tuple[MixerKind, ...] = "attention"
    """How a layer mixes the tokens of a sequence: `attention`, over all of them or a window; or with a state of
    constant size: `mamba2` (SSD), `rwkv7`, `retnet` or `gated_delta` (Gated DeltaNet). One value for all layers, or a
    list with one per layer."""
    recurrence: RecurrenceConfig = RecurrenceConfig()
    """Sizes of the mixers with a state."""
    attention: AttentionConfig = AttentionConfig()
    """Projections, positions and windows."""
    heads: HeadsConfig = HeadsConfig()
    """Choice of query heads per token."""
    ffn: FFNConfig = FFNConfig()
    """Experts, or one dense FFN."""
    depth: DepthConfig = DepthConfig()
    """Depth routers, early exits and layer dropout."""
    recursion: RecursionConfig = RecursionConfig()
    """Layers that are repeated with the same weights."""

    @model_validator(mode="before")
    @classmethod
    def _rope_theta_was_here(cls, values: Any) -> Any:
        """Move `rope_theta`, which configs had before `attention.rope`, to `attention.rope.theta`."""
        if not isinstance(values, Mapping) or "rope_theta" not in values:
            return values
        others = {name: value for name, value in values.items() if name != "rope_theta"}
        attention = others.get("attention", {})
        if not isinstance(attention, Mapping) or "rope" in attention:
            raise ValueError("rope_theta is attention.rope.theta now: leave rope_theta out and set that")
        return {**others, "attention": {**attention, "rope": {"theta": values["rope_theta"]}}}

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads}), or set head_dim")
        fit_depth(self)
        one_per_layer("mixers", self.mixers, self.num_layers)
        fit_mixers(self)
        fit_attention(self)
        fit_retnet(self)
        fit_heads(self)
        fit_ffn(self)
        fit_recursion(self)
        for section, name in (("heads", "head_top_p"), ("ffn", "router_top_p"), ("depth", "depth_threshold")):
            getattr(self, section).fit_level(
                f"{section}.{name}", getattr(getattr(self, section), name), self.num_layers
            )
        return self

    @property
    def resolved_head_dim(self) -> int:
        """Width of one head, with the default of `head_dim` filled in."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def num_experts(self) -> int:
        """Experts of a layer with experts; a dense FFN counts as one."""
        return 1 if self.ffn.routing == "dense" else self.ffn.num_experts

    @property
    def num_choices(self) -> int:
        """Experts and zero-computation experts of a layer with experts; a dense FFN counts as one."""
        return self.num_experts + self.ffn.zero_experts.total

    def is_dense(self, layer: int) -> bool:
        """Return whether a layer has one dense FFN and no experts."""
        return self.ffn.routing == "dense" or layer in self.ffn.dense_layers

    def ffn_dim(self, layer: int) -> int:
        """Return the hidden width of the dense FFN, or of one expert, of a layer."""
        if not self.is_dense(layer):
            return self.ffn.expert_dim
        return self.ffn.dim if isinstance(self.ffn.dim, int) else self.ffn.dim[layer]

    @property
    def dials_ratio(self) -> bool:
        """Whether `router_ratio` decides how many experts run: tokens choose among few candidates."""
        return self.ffn.most_experts is not None

    @property
    def routed_heads(self) -> int:
        """Query heads that are not shared by all tokens."""
        return self.num_heads - self.heads.shared_heads

    @property
    def heads_per_token(self) -> float:
        """Average number of heads to hold, with its default filled in; all heads where none are routed."""
        if self.heads.routing == "all":
            return float(self.num_heads)
        if self.heads.heads_per_token is not None:
            return self.heads.heads_per_token
        wanted = max(0.75 * self.num_heads, self.least_heads if self.heads.routing != "top_k" else 1)
        return float(round(wanted)) if self.heads.routing == "top_k" else wanted

    @property
    def least_heads(self) -> int:
        """Fewest heads that a token can use in a layer that it runs."""
        return {
            "all": self.num_heads,
            "top_k": int(self.heads.heads_per_token or round(0.75 * self.num_heads)),
            "top_p": self.heads.shared_heads + 1,
            "adaptive": self.heads.least_heads,
        }[self.heads.routing]

    @property
    def most_heads(self) -> int:
        """Most heads that a token can use."""
        if self.heads.routing == "adaptive":
            return self.heads.most_heads or self.num_heads
        return self.least_heads if self.heads.routing == "top_k" else self.num_heads

    @property
    def has_norms_before(self) -> bool:
        """Whether attention and feed-forward part read a normed state."""
        return self.norm_place != "post"

    @property
    def has_norms_after(self) -> bool:
        """Whether the outputs of attention and feed-forward part are normed before they are added to the state."""
        return self.norm_place != "pre"

    @property
    def has_learned_positions(self) -> bool:
        """Whether a vector for each position is added to the embedding."""
        return self.attention.positions == "learned"

    def mixer_of(self, layer: int) -> MixerKind:
        """Return how a layer mixes tokens."""
        return self.mixers if isinstance(self.mixers, str) else self.mixers[layer]

    def attends(self, layer: int) -> bool:
        """Return whether a layer has attention, and so keys, values, heads to choose and a window."""
        return self.mixer_of(layer) == "attention"

    @property
    def has_attention(self) -> bool:
        """Whether any layer has attention."""
        return any(self.attends(layer) for layer in range(self.num_layers))

    @property
    def has_states(self) -> bool:
        """Whether any layer has a mixer with a recurrent state."""
        return not all(self.attends(layer) for layer in range(self.num_layers))

    @property
    def recurrent_mixers(self) -> list[MixerKind]:
        """The mixers with a recurrent state, each once, in the order of the layers."""
        mixers = (self.mixer_of(layer) for layer in range(self.num_layers) if not self.attends(layer))
        return list(dict.fromkeys(mixers))

    @property
    def state_head_dim(self) -> int:
        """Width of keys and values of a head of mixers with a state, with its default filled in."""
        return self.recurrence.head_dim or self.resolved_head_dim

    def state_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the states of a layer for one sequence; none where it attends.

        `state` is (heads, values, keys); `conv`, (channels, earlier tokens), is there only if it holds any.
        """
        mixer, width = self.mixer_of(layer), self.state_head_dim
        if mixer == "attention":
            return {}
        inner = self.num_heads * width
        channels = {"mamba2": inner + 2 * width, "gated_delta": 3 * inner, "rwkv7": self.dim, "retnet": 0}[mixer]
        earlier = 1 if mixer == "rwkv7" else self.recurrence.conv - 1
        shapes: dict[str, tuple[int, ...]] = {"state": (self.num_heads, width, width)}
        return {**shapes, "conv": (channels, earlier)} if channels and earlier else shapes

    def positions_of(self, layer: int) -> Positions:
        """Return the position encoding of a layer; of the mixers with a state, only `retnet` has one, `rope`."""
        positions = self.attention.positions
        own = positions if isinstance(positions, str) else positions[layer]
        if self.attends(layer) or (self.mixer_of(layer) == "retnet" and own == "rope"):
            return own
        return "none"

    def rope_of(self, layer: int) -> RopeConfig | None:
        """Return the rotary positions of a layer; None where it has others."""
        if self.positions_of(layer) != "rope":
            return None
        rope = self.attention.rope
        return rope if isinstance(rope, RopeConfig) else rope[layer]

    @property
    def ropes(self) -> list[RopeConfig]:
        """The rotary positions of the model, each kind once, in the order of the layers."""
        ropes = (self.rope_of(layer) for layer in range(self.num_layers))
        return list(dict.fromkeys(rope for rope in ropes if rope is not None))

    def window_of(self, layer: int) -> int:
        """Return the largest number of tokens that attention of a layer looks back at; 0 means all."""
        window = self.attention.window if self.attends(layer) else 0
        return window if isinstance(window, int) else window[layer]

    @property
    def has_windows(self) -> bool:
        """Whether any layer has a window."""
        return any(self.window_of(layer) for layer in range(self.num_layers))

    def has_depth_router(self, layer: int) -> bool:
        """Return whether a layer has a depth router; the first and the last layer always run.

        Where layers are repeated, only a repetition has one, in its first layer.
        """
        if self.depth.layers_share == 1.0:
            return False
        return self.recursion.begins(layer) if self.recursion.times > 1 else 0 < layer < self.num_layers - 1

    def follows_router(self, layer: int) -> bool:
        """Return whether a layer belongs to a repetition that only some tokens run."""
        return self.depth.layers_share < 1.0 and layer in self.recursion.repeated

    def can_skip(self, layer: int) -> bool:
        """Return whether a token can leave out this layer: by a router, or by an earlier exit."""
        routed = self.has_depth_router(layer) or self.follows_router(layer)
        return routed or any(exit_ < layer for exit_ in self.depth.exit_layers)

    def counts_cells(self, layer: int) -> bool:
        """Return whether the cache of a layer records which tokens ran it; `cope` counts only those."""
        projects = self.depth.skipped_kv == "project"
        return projects and self.positions_of(layer) == "cope" and self.can_skip(layer)

    @property
    def adapts_depth(self) -> bool:
        """Whether a token can leave out a layer anywhere in the model."""
        return bool(self.depth.exit_layers) or any(self.has_depth_router(i) for i in range(self.num_layers))
