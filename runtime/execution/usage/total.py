"""The compute of many tokens, added up."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Total:
    """The compute that some tokens used, and its cost."""

    tokens: int = 0
    layers: int = 0
    """Layers run."""
    experts: int = 0
    heads: int = 0
    executed_flops: float = 0.0
    """FLOPs that ran; a multiply-add is 2."""
    dense_flops: float = 0.0
    """FLOPs of the same tokens if nothing had been skipped."""
    adaptive_flops: float = 0.0
    """The part of `executed_flops` that the thresholds decide."""
    adaptive_dense_flops: float = 0.0
    """The same part of `dense_flops`."""
    executed_bytes: float = 0.0
    """Bytes of weights and KV cache that were read, and of states that were read and written."""

    def __add__(self, other: "Total") -> "Total":
        """Add the tokens of `other`."""
        return Total(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def share(self) -> float:
        """Executed over dense FLOPs; 0 without a token."""
        return self.executed_flops / self.dense_flops if self.dense_flops else 0.0

    @property
    def experts_per_token(self) -> float:
        """Mean over the tokens and the layers that they ran."""
        return self.experts / max(self.layers, 1)

    @property
    def heads_per_token(self) -> float:
        """Mean over the tokens and the layers that they ran."""
        return self.heads / max(self.layers, 1)

    @property
    def layers_per_token(self) -> float:
        """Mean of the layers run."""
        return self.layers / max(self.tokens, 1)

    def means(self) -> dict[str, float]:
        """Return the means per token, rounded, by the names that they have in files and answers."""
        names = ("experts_per_token", "heads_per_token", "layers_per_token")
        return {name: round(getattr(self, name), 4) for name in names}
