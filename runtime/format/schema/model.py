"""The section `model`: shapes and mechanisms of each layer, and of the whole.

L layers.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from .part import Count, Part, Positive

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
"""Precisions of weights. In the target `cuda`, fp16 is also that of the products; elsewhere products are in fp32."""
KV = Literal["fp32", "fp16", "int8"]
"""Precisions of keys and values in the cache; the portable graph has fp32."""
Mixer = Literal["attention", "mamba2", "rwkv7", "retnet", "gated_delta"]
"""How a layer mixes tokens: attention over a KV cache, or a recurrence over a state of constant size."""


class Precisions(Part):
    """Precision of the weights of each part; those of routers, norms and positions are float32 in every graph."""

    experts: Precision
    """Experts, the shared expert, or the dense FFN."""
    attention: Precision
    """Queries, keys, values and output."""
    embedding: Precision
    """Equal to `head` where the two are one matrix."""
    head: Precision
    """The output head, which exits share."""

    @classmethod
    def of(cls, precision: Precision) -> Self:
        """Return the precisions of a model that is quantised to one; int4 leaves embedding and head in int8."""
        ends: Precision = "int8" if precision == "int4" else precision
        return cls(experts=precision, attention=precision, embedding=ends, head=ends)

    @property
    def narrowest(self) -> Precision:
        """The precision of the fewest bits."""
        order: tuple[Precision, ...] = ("int4", "int8", "bf16", "fp16", "fp32")
        return min((self.experts, self.attention, self.embedding, self.head), key=order.index)

    @property
    def quantised(self) -> bool:
        """Whether a part is in int8 or int4."""
        return self.narrowest in ("int8", "int4")


class Layer(Part):
    """The mechanisms of one layer."""

    routing: Literal["top_p", "top_k", "relu", "dense"]
    """The routing of experts; `relu` chooses those of positive gate, perhaps none; `dense` has no router."""
    num_experts: Positive
    """1 where the FFN is dense."""
    most_experts: Count = 0
    """Most experts of a token, of which `router_top_p` and `router_ratio` leave out some; 0: any number of experts."""
    zero_experts: list[Literal["zero", "copy", "constant"]] = Field(default_factory=list)
    """The zero-computation experts, which are chosen like experts but have no matrices, and which `num_experts` and the
    number of experts that a token used do not count."""
    depth_router: bool
    """Whether a router decides which tokens run the layer."""
    exit: bool
    """Whether a token may leave after the layer."""
    mixer: Mixer = "attention"
    """The token mixer; only attention has a KV cache, positions, windows and routed heads."""
    states: dict[Literal["state", "conv"], list[Positive]] = Field(default_factory=dict)
    """Shapes of what a recurrent mixer remembers of one sequence, float32, by the name in `past_state.3`: `state`
    (heads, values, keys), and `conv` (channels, inputs), the last inputs of a short convolution."""
    positions: Literal["rope", "cope", "none", "learned"] = "rope"
    window: Count = 0
    """Most tokens that the layer looks back at, including the token itself; 0: no window."""
    head_routing: Literal["all", "top_k", "top_p", "adaptive"] = "all"
    shared_heads: Count = 0
    """Heads that every token uses; they come first."""
    least_heads: Count = 0
    """Fewest heads that a token can use."""
    most_heads: Count = 0
    """Most heads that a token can use; 0: every head of the model."""

    @model_validator(mode="after")
    def _states_fit_the_mixer(self) -> Self:
        dimensions = {"state": 3, "conv": 2}
        if (self.mixer != "attention") != ("state" in self.states):
            raise ValueError(f"a layer with the mixer {self.mixer} has the states {sorted(self.states)}")
        for name, shape in self.states.items():
            if len(shape) != dimensions[name]:
                raise ValueError(f"states.{name} has the shape {shape}, expected {dimensions[name]} dimensions")
        if self.mixer != "attention" and (self.window or self.head_routing != "all"):
            raise ValueError(f"a layer with the mixer {self.mixer} has a window or routed heads; these need attention")
        return self

    @property
    def attends(self) -> bool:
        """Whether the layer has attention and so a KV cache."""
        return self.mixer == "attention"

    @property
    def candidates(self) -> int:
        """Most experts that a token can use in this layer."""
        return self.most_experts or self.num_experts

    @property
    def least_experts(self) -> int:
        """Fewest experts of a token that runs the layer."""
        return 0 if self.zero_experts or self.routing == "relu" else 1

    @property
    def dials_experts(self) -> bool:
        """Whether `router_top_p` decides how many experts run."""
        return self.routing in ("top_p", "relu") and (self.candidates > 1 or self.least_experts == 0)

    def head_range(self, num_heads: int) -> tuple[int, int]:
        """Return the fewest and the most heads that a token can use in this layer."""
        return (self.least_heads, self.most_heads or num_heads) if self.head_routing != "all" else (num_heads,) * 2


class Model(Part):
    """Shapes and mechanisms of the model."""

    vocab_size: Positive
    """Rows of the embedding, at least `tokenizer_size`; the rest is padding that is never sampled."""
    tokenizer_size: Positive
    """Token ids of the tokenizer."""
    context_length: Positive
    """Most tokens of a sequence."""
    dim: Positive
    """Width of the residual stream."""
    num_layers: Positive
    num_heads: Positive
    """Query heads of a layer."""
    num_kv_heads: Positive
    """Key/value heads of a layer."""
    head_dim: Positive
    precision: Precision
    """The narrowest precision of the portable graph's weights."""
    precisions: Precisions | None = None
    """The precision of each part of the portable graph; None: every part has `precision`."""
    skipped_kv: Literal["none", "project"]
    """Keys and values of a token that skips a layer: absent from its cache, or projected from the frozen state."""
    eos_id: Count
    """Token id that ends a text."""
    eos_ids: list[Count] = Field(default_factory=list)
    """All token ids that end a text, `eos_id` among them; empty: only that."""
    num_experts: Positive
    """Most experts of a layer."""
    layers: list[Layer]
    exit_criterion: Literal["top_prob", "margin", "entropy", "router"] = "top_prob"
    """The confidence that is compared with the exit threshold."""
    hidden_states: bool = False
    """Whether the graphs also give the hidden states after the last norm, whose mean is the embedding of a text."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.layers) != self.num_layers:
            raise ValueError(f"{len(self.layers)} layers are described, num_layers is {self.num_layers}")
        if self.tokenizer_size > self.vocab_size:
            raise ValueError(f"tokenizer_size {self.tokenizer_size} is larger than vocab_size {self.vocab_size}")
        for end in (self.eos_id, *self.eos_ids):
            if end >= self.tokenizer_size:
                raise ValueError(f"eos_id {end} is outside the tokenizer of {self.tokenizer_size}")
        if self.eos_ids and self.eos_id not in self.eos_ids:
            raise ValueError(f"eos_id {self.eos_id} is not among eos_ids {self.eos_ids}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if any(layer.num_experts > self.num_experts for layer in self.layers):
            raise ValueError(f"a layer has more experts than num_experts {self.num_experts}")
        if any(layer.most_experts > layer.num_experts for layer in self.layers):
            raise ValueError("most_experts of a layer is higher than its num_experts")
        for layer in self.layers:
            least, most = layer.head_range(self.num_heads)
            if not layer.shared_heads <= least <= most <= self.num_heads:
                raise ValueError(
                    f"a layer has {layer.shared_heads} shared heads, uses {least} to {most}, and num_heads is "
                    f"{self.num_heads}; these four must not decrease"
                )
        return self

    @property
    def ends(self) -> list[int]:
        """Token ids that end a text, the main one first."""
        return [self.eos_id, *(end for end in self.eos_ids if end != self.eos_id)]

    @property
    def most_zero_experts(self) -> int:
        """Most zero-computation experts of a layer."""
        return max((len(layer.zero_experts) for layer in self.layers), default=0)

    @property
    def routes_heads(self) -> bool:
        """Whether the graph reports the heads that a token used."""
        return any(layer.head_routing != "all" for layer in self.layers)

    @property
    def dials_heads(self) -> bool:
        """Whether `head_top_p` decides how many heads run."""
        return any(layer.head_routing in ("top_p", "adaptive") for layer in self.layers)

    @property
    def dials_ratio(self) -> bool:
        """Whether `router_ratio` decides how many experts run: tokens choose among few candidates."""
        return any(layer.most_experts for layer in self.layers)

    @property
    def has_windows(self) -> bool:
        """Whether a layer has a window."""
        return any(layer.window for layer in self.layers)

    @property
    def has_states(self) -> bool:
        """Whether a layer has a recurrent mixer, and so a state in place of a KV cache."""
        return any(layer.states for layer in self.layers)

    def counts_cells(self, index: int) -> bool:
        """Whether a layer has a third cache that marks the tokens that ran it: CoPE does not count the others."""
        layer = self.layers[index]
        skips = layer.depth_router or any(each.exit for each in self.layers[:index])
        return skips and self.skipped_kv == "project" and layer.attends and layer.positions == "cope"
