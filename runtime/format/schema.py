"""The sections of a manifest: shapes, thresholds, dial, curve and costs of an exported model.

L layers. A field with a default is missing in older manifests of the same version; the default describes such a model.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...contract.generation_settings import Dialect, GenerationSettings, Role, ToolFormat, template_file

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
"""Precisions of weights. In the target `cuda`, fp16 is also that of the products; elsewhere products are in fp32."""
KV = Literal["fp32", "fp16", "int8"]
"""Precisions of keys and values in the cache; the portable graph has fp32."""
Mixer = Literal["attention", "mamba2", "rwkv7", "retnet", "gated_delta"]
"""How a layer mixes tokens: attention over a KV cache, or a recurrence over a state of constant size."""
Executor = Literal[
    "our operators",
    "standard operators",
    "contrib operators",
    "contrib or standard operators by layer",
    "contrib operators (all computed)",
    "standard operators (all computed)",
    "standard operators (skipped where no token runs)",
]
"""The operators that run a mechanism: ours, those of the ONNX standard, or those that ONNX Runtime adds to it."""

ExpertRule = Literal["mass", "ratio"]
"""How experts are left out among the candidates of a token: those beyond a share of the mass (`router_top_p`), or those
below a share of the first one's score (`router_ratio`)."""


class Part(BaseModel):
    """Base of every section: immutable; unknown fields of a later writer are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


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


class Generation(Part):
    """How texts are written for the model and drawn from it; the defaults describe a model that was trained here."""

    dialect: Dialect = "own"
    """The environment that the chat templates were written for."""
    bos_id: Count | None = None
    """Token id that begins a text; None where the model has none."""
    add_bos: bool = False
    """Whether a prompt without a template begins with `bos_id`."""
    special_tokens: dict[Role, str] = Field(default_factory=dict)
    """Texts of the special tokens by role, as the templates spell them."""
    sampling: dict[str, int | float] = Field(default_factory=dict)
    """Defaults of sampling; a setting that is left out has the program's default."""
    stop: list[str] = Field(default_factory=list)
    """Texts before which a text ends."""
    tools: ToolFormat | None = None
    """How the model writes tool calls; None: recognised from its template."""
    templates: dict[str, str] = Field(default_factory=dict)
    """Chat templates besides the main one, by name."""

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        GenerationSettings(
            eos_ids=(0,),
            bos_id=self.bos_id,
            add_bos=self.add_bos,
            dialect=self.dialect,
            special_tokens=self.special_tokens,
            sampling=self.sampling,
            templates={name: template_file(name) for name in self.templates},
            stop=tuple(self.stop),
            tools=self.tools,
        )
        return self


class Tensor(Part):
    """An input or output of the graph."""

    dtype: str
    shape: list[int | str]
    """A number, or the name of a dimension that varies."""


class ThresholdLists(Part):
    """One threshold per layer: those that the model was trained with, or those of a point of the curve."""

    router_top_p: list[Share]
    depth_threshold: list[Share]
    exit_threshold: list[Share]
    head_top_p: list[Share] = Field(default_factory=list)
    """Empty stands for 1 in every layer."""
    router_ratio: list[Share] = Field(default_factory=list)
    """Least score of an expert, relative to that of the token's first. Empty stands for 0 in every layer."""


class DialTarget(Part):
    """The averages that training aimed at."""

    experts_per_token: Annotated[float, Field(ge=0)] | None = None
    layers_share: Share | None = None
    heads_per_token: Annotated[float, Field(ge=0)] | None = None


class DialTable(Part):
    """For each share of `grid`, the threshold of each layer; None where a layer has no such choice."""

    grid: list[Share]
    router_top_p: list[list[Share] | None]
    depth_threshold: list[list[Share] | None]
    target: DialTarget
    head_top_p: list[list[Share] | None] = Field(default_factory=list)
    """At share s of the grid, the threshold at which fewest + s * (most - fewest) heads run on average. Empty: no table
    in any layer."""

    @model_validator(mode="after")
    def _tables_fit_the_grid(self) -> Self:
        if len(self.grid) < 2 or sorted(set(self.grid)) != self.grid:
            raise ValueError("grid must rise strictly and hold at least two values")
        for name in ("router_top_p", "depth_threshold", "head_top_p"):
            for index, table in enumerate(getattr(self, name)):
                if table is not None and len(table) != len(self.grid):
                    raise ValueError(f"{name}[{index}] has {len(table)} values for a grid of {len(self.grid)}")
        return self


class LayerCosts(Part):
    """Cost of one token in one layer: FLOPs (1 multiply-add = 2) or bytes read, depending on the table."""

    attention: Cost
    """Projections of attention, or of a recurrent mixer, that every token of the layer needs."""
    attention_per_key: Cost
    """Times the keys visible to the token."""
    router: Cost
    """Routers of experts, heads and windows."""
    expert: Cost
    """Times the experts used."""
    shared_expert: Cost
    depth_router: Cost
    exit_check: Cost
    skipped_kv: Cost
    """Keys and values of a token that skips the layer, under the policy `project`."""
    head: Cost = 0
    """Times the attention heads used; 0 where the graph computes every head, which is then part of `attention`."""
    head_per_key: Cost = 0
    """Times the attention heads used, times the keys visible to the token."""
    state: Cost = 0
    """The recurrence and short convolution of a recurrent mixer: their FLOPs, or the bytes of the state, which is read
    and written. It does not grow with the text; 0 for attention."""


class CostTable(Part):
    """Costs of one token in one unit: FLOPs or bytes."""

    lm_head: Cost
    """The output head: final norm to logits."""
    layers: list[LayerCosts]


class Costs(Part):
    """The two tables of costs."""

    flops: CostTable
    weight_bytes: CostTable


class Target(Part):
    """A second graph of the same model, for one kind of machine: the same inputs and outputs, other operators."""

    graph: str
    """Name of its file."""
    data: str
    """Name of the file with its weights, the only one that it points to."""
    precisions: Precisions
    kv: KV
    """Precision of the keys and values in its cache."""
    operators: Count
    """Version of our operators that it needs; 0 for none."""
    costs: Costs
    """Costs of its operators; bytes include the padding of packed weights."""
    mechanisms: dict[str, Executor]
    """For each mechanism of the model, which operators run it."""


class Milliseconds(Part):
    """Milliseconds per token, over all rounds of a measurement."""

    median: Cost
    p5: Cost
    p95: Cost


class CurvePoint(Part):
    """One point of the calibrated dial, and its figures, measured on text that it was not chosen on."""

    compute: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    """Requested share of the dense FLOPs."""
    thresholds: ThresholdLists
    executed_share: Share
    """Measured share of the dense FLOPs."""
    loss: Cost
    """Nats per token."""
    bits_per_byte: Cost
    kl: Cost | None = None
    """Mean KL divergence of the next token's probabilities from those of the last point, in nats per token."""
    agreement: Share | None = None
    """Share of the tokens with the same most probable successor as at the last point."""
    experts_per_token: Cost
    heads_per_token: Cost
    layers_per_token: Cost
    milliseconds_per_token: Milliseconds | None = None


class ExitAgreement(Part):
    """The lowest exit threshold at which `share` of the tokens are chosen as by the whole model, by a test."""

    share: Share
    """Requested."""
    confidence: Share
    """Confidence that the share holds on texts like the one measured."""
    exit_threshold: Share
    measured: Share
    """Share of the tokens that agreed."""
    layers_per_token: Cost


class Curve(Part):
    """The calibrated dial: for each compute the thresholds of least loss, measured on held-out text."""

    text: str
    """Name of the text."""
    tokens: Positive
    """Tokens on which each figure was measured."""
    machine: dict[str, Any]
    """The machine on which times were measured; see `describe`."""
    points: list[CurvePoint]
    """In order of rising compute."""
    agreement: list[ExitAgreement] = Field(default_factory=list)
    expert_rule: ExpertRule | None = None
    """The rule that lost less, by which experts are left out; None in a model without `most_experts`."""
    rule_losses: dict[ExpertRule, Cost] = Field(default_factory=dict)
    """Mean loss over the same shares of the FLOPs by each rule, on the text that thresholds were chosen on."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        computes = [point.compute for point in self.points]
        if len(computes) < 2 or sorted(set(computes)) != computes:
            raise ValueError("compute of the points must rise strictly, over at least two points")
        executed = [point.executed_share for point in self.points]
        if sorted(executed) != executed:
            raise ValueError("executed_share of the points must not fall as compute rises")
        return self


class FileInfo(Part):
    """Size in bytes and digest of one file."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
