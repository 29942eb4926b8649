"""The section `costs`: FLOPs and bytes of one token."""

from .part import Cost, Part


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
