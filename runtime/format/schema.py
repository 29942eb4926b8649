"""The sections of an exported model's manifest: its shapes, thresholds, dial, curve and costs.

L layers. Fields with a default came later than the first format, and read as what a model from before them is.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """What every section of the manifest is: immutable, and indifferent to fields that a later 1.x writer may add."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Layer(Part):
    routing: Literal["top_p", "top_k", "dense"]
    num_experts: Positive  # 1 where the FFN is dense
    depth_router: bool
    exit: bool
    positions: Literal["rope", "cope", "none"] = "rope"
    window: Count = 0  # most tokens that the layer looks back at, its own included; 0: no window
    head_routing: Literal["all", "top_k", "top_p", "adaptive"] = "all"
    shared_heads: Count = 0
    least_heads: Count = 0  # fewest heads that a token can use
    most_heads: Count = 0  # and most; 0: every head of the model

    def head_range(self, num_heads: int) -> tuple[int, int]:
        """Fewest and most heads that a token can use in this layer."""
        return (self.least_heads, self.most_heads or num_heads) if self.head_routing != "all" else (num_heads,) * 2


class Model(Part):
    vocab_size: Positive  # rows of the embedding; at least `tokenizer_size`, the rest is padding that is never sampled
    tokenizer_size: Positive
    context_length: Positive
    dim: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    precision: Literal["fp32", "int8"]
    skipped_kv: Literal["none", "project"]
    eos_id: Count
    num_experts: Positive
    layers: list[Layer]
    exit_criterion: Literal["top_prob", "margin", "entropy", "router"] = "top_prob"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.layers) != self.num_layers:
            raise ValueError(f"{len(self.layers)} layers are described, num_layers is {self.num_layers}")
        if self.tokenizer_size > self.vocab_size:
            raise ValueError(f"tokenizer_size {self.tokenizer_size} is larger than vocab_size {self.vocab_size}")
        if self.eos_id >= self.tokenizer_size:
            raise ValueError(f"eos_id {self.eos_id} is outside the tokenizer of {self.tokenizer_size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if any(layer.num_experts > self.num_experts for layer in self.layers):
            raise ValueError(f"a layer has more experts than num_experts {self.num_experts}")
        for layer in self.layers:
            least, most = layer.head_range(self.num_heads)
            if not layer.shared_heads <= least <= most <= self.num_heads:
                raise ValueError(
                    f"a layer has {layer.shared_heads} shared heads, uses {least} to {most}, num_heads is "
                    f"{self.num_heads}; they must not fall"
                )
        return self

    @property
    def routes_heads(self) -> bool:
        """Whether the graph reports the heads that a token used."""
        return any(layer.head_routing != "all" for layer in self.layers)

    @property
    def dials_heads(self) -> bool:
        """Whether `head_top_p` decides how many heads run."""
        return any(layer.head_routing in ("top_p", "adaptive") for layer in self.layers)

    @property
    def has_windows(self) -> bool:
        return any(layer.window for layer in self.layers)

    def counts_cells(self, index: int) -> bool:
        """Whether a layer has a third cache, of which tokens ran it: CoPE counts no token that skipped the layer."""
        skips = self.layers[index].depth_router or any(layer.exit for layer in self.layers[:index])
        return skips and self.skipped_kv == "project" and self.layers[index].positions == "cope"


class Tensor(Part):
    dtype: str
    shape: list[int | str]


class ThresholdLists(Part):
    """One threshold per layer: what the model was trained to run with, or what a point of the curve needs."""

    router_top_p: list[Share]
    depth_threshold: list[Share]
    exit_threshold: list[Share]
    head_top_p: list[Share] = Field(default_factory=list)  # empty: 1 in every layer


class DialTarget(Part):
    experts_per_token: Annotated[float, Field(ge=0)] | None = None
    layers_share: Share | None = None
    heads_per_token: Annotated[float, Field(ge=0)] | None = None


class DialTable(Part):
    """For each wanted average (`grid`, 0..1), the threshold per layer; None where a layer has no such choice."""

    grid: list[Share]
    router_top_p: list[list[Share] | None]
    depth_threshold: list[list[Share] | None]
    target: DialTarget
    head_top_p: list[list[Share] | None] = Field(default_factory=list)  # empty: no table in any layer; at share s of
    # the grid, the level at which fewest + s * (most - fewest) heads run on average

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
    """Cost of one token in one layer; FLOPs (1 multiply-add = 2) or bytes read, by the table it stands in."""

    attention: Cost
    attention_per_key: Cost  # times the keys visible to the token
    router: Cost
    expert: Cost  # times the experts used
    shared_expert: Cost
    depth_router: Cost
    exit_check: Cost
    skipped_kv: Cost  # keys and values of a token that skips the layer, under the policy `project`
    head: Cost = 0  # times the heads used; 0 where the graph computes every head, which `attention` then holds
    head_per_key: Cost = 0  # times the heads used, times the keys visible to the token


class CostTable(Part):
    lm_head: Cost
    layers: list[LayerCosts]


class Costs(Part):
    flops: CostTable
    weight_bytes: CostTable


class Milliseconds(Part):
    """Of one token, over all rounds of a measurement."""

    median: Cost
    p5: Cost
    p95: Cost


class CurvePoint(Part):
    """One place of the calibrated dial, and what was measured there on text that it was not chosen on."""

    compute: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]  # asked for: executed share of the dense FLOPs
    thresholds: ThresholdLists
    executed_share: Share  # measured
    loss: Cost  # nats per token
    bits_per_byte: Cost
    experts_per_token: Cost
    heads_per_token: Cost
    layers_per_token: Cost
    milliseconds_per_token: Milliseconds | None = None


class ExitAgreement(Part):
    """The least exit threshold at which `share` of the tokens choose as the whole model does, by a test."""

    share: Share  # asked for
    confidence: Share  # that the share holds on texts like the one measured
    exit_threshold: Share
    measured: Share
    layers_per_token: Cost


class Curve(Part):
    """The calibrated dial: for each compute the thresholds of least loss, measured on held-out text."""

    text: str  # which
    tokens: Positive  # that each figure is measured on
    machine: dict[str, Any]
    points: list[CurvePoint]  # compute rises
    agreement: list[ExitAgreement] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        asked = [point.compute for point in self.points]
        if len(asked) < 2 or sorted(set(asked)) != asked:
            raise ValueError("compute of the points must rise strictly, over at least two points")
        executed = [point.executed_share for point in self.points]
        if sorted(executed) != executed:
            raise ValueError("executed_share of the points must not fall as compute rises")
        return self


class FileInfo(Part):
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
