"""The section `lora` of a run's config: small trained matrices beside frozen ones."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ...system.section import Section

Target = Literal["q", "kv", "o", "ffn"]


class LoraConfig(Section):
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = W x + alpha / rank B A x, W frozen.

    For models too large to train whole: only A and B have gradients and optimizer states, and the weights of the run
    stay in the precision of their file.
    """

    rank: int = Field(16, ge=1, le=4096)
    """Rows of A and columns of B, at least 1. Keys and values have an adapter each, as have gate and up."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters, divided by `rank`; above 0."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of adapters that is left out in training, 0 to below 1."""
    targets: tuple[Target, ...] = ("q", "kv", "o", "ffn")
    """Matrices with adapters: `q`, `kv` and `o` of attention; `ffn`, of dense FFNs and shared experts. Experts that
    tokens choose have none."""
    initial: str | None = None
    """Folder with an adapter in the format of peft that training begins with; null begins with B = 0, as the run is."""

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets is {list(self.targets)}; expected some of q, kv, o and ffn, each once")
        return self

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank
