"""Settings of rotary positions: base, rotated share of a head, scaling for a longer context."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ...system.section import Section

ScalingKind = Literal["none", "linear", "llama3", "yarn", "longrope"]
Positive = Annotated[float, Field(gt=0)]
OWN_FIELDS: dict[ScalingKind, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_context", "low_frequency_factor", "high_frequency_factor"),
    "yarn": ("factor", "original_context", "beta_fast", "beta_slow", "attention_factor"),
    "longrope": ("factor", "original_context", "attention_factor", "short_factors", "long_factors"),
}
"""The fields that each kind of scaling reads."""


class RopeScaling(Section):
    """Scaling of the rotary frequencies, for contexts longer than those of the first training."""

    kind: ScalingKind = "none"
    """`linear` divides all frequencies by `factor` (Chen et al. 2023, arXiv 2306.15595). `llama3` divides the low
    frequencies and blends those between (Llama 3.1). `yarn` blends by dimension and scales attention (Peng et al. 2023,
    arXiv 2309.00071). `longrope` divides each frequency by its own factor and scales attention (Ding et al. 2024, arXiv
    2402.13753)."""
    factor: float | None = Field(None, ge=1)
    """Context after scaling divided by the context before it, at least 1."""
    original_context: int | None = Field(None, ge=2)
    """Context before scaling in tokens, at least 2. Under `longrope`, a model whose `context_length` is longer uses
    `long_factors` for every text, others `short_factors`."""
    low_frequency_factor: float = Field(1.0, gt=0)
    """Under `llama3`: `original_context` divided by the wavelength in tokens from which a frequency is fully scaled."""
    high_frequency_factor: float = Field(4.0, gt=0)
    """Under `llama3`: `original_context` divided by the wavelength in tokens up to which a frequency is kept."""
    beta_fast: float = Field(32.0, gt=0)
    """Under `yarn`: turns in `original_context` tokens from which a frequency is kept."""
    beta_slow: float = Field(1.0, gt=0)
    """Under `yarn`: turns in `original_context` tokens up to which a frequency is fully scaled."""
    attention_factor: float | None = Field(None, gt=0)
    """Under `yarn` and `longrope`: factor of the rotated queries and keys, greater than 0. null takes that of the
    paper, from `factor`: 0.1 ln(factor) + 1, or sqrt(1 + ln(factor) / ln(original_context))."""
    short_factors: tuple[Positive, ...] = ()
    """Under `longrope`: divisors of the frequencies, one for each pair of rotated components, each greater than 0,
    where `context_length` is at most `original_context`."""
    long_factors: tuple[Positive, ...] = ()
    """Under `longrope`: the divisors where `context_length` is longer."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        read = OWN_FIELDS[self.kind]
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in read and getattr(self, name) != field.default:
                readers = [kind for kind, names in OWN_FIELDS.items() if name in names]
                raise ValueError(
                    f"{name} is set, but rope scaling of kind {self.kind} does not read it ({' and '.join(readers)} "
                    "would): leave it out, or change the kind"
                )
        needed = [name for name in read if name in ("original_context", "short_factors", "long_factors")]
        if "factor" in read and self.attention_factor is None:
            needed.append("factor")
        if self.kind == "yarn":
            needed.append("factor")
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"rope scaling of kind {self.kind} needs {name}: set it, or set kind to none")
        if self.kind == "llama3" and self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor is {self.low_frequency_factor}; expected less than high_frequency_factor "
                f"({self.high_frequency_factor})"
            )
        if self.kind == "yarn" and self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow is {self.beta_slow}; expected less than beta_fast ({self.beta_fast})")
        return self


class RopeConfig(Section):
    """Rotary positions of a layer."""

    theta: float = Field(10_000.0, gt=0)
    """Base of the rotary frequencies, greater than 0; under `yarn` greater than 1."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the components of a head that are rotated, the first ones; greater than 0, at most 1."""
    scaling: RopeScaling = RopeScaling()
    """Scaling of the frequencies."""

    @model_validator(mode="after")
    def _frequencies_fall(self) -> Self:
        if self.scaling.kind == "yarn" and self.theta <= 1:
            raise ValueError(f"theta is {self.theta}; rope scaling of kind yarn needs one greater than 1")
        return self

    def rotated(self, head_dim: int) -> int:
        """Return the number of components that are rotated in a head of width `head_dim`."""
        return int(head_dim * self.share)

    def fit(self, head_dim: int) -> None:
        """Raise ValueError where the section does not fit a head of width `head_dim`."""
        width, scaling = self.rotated(head_dim), self.scaling
        if width % 2 or not width:
            part = f"heads are {head_dim} wide" if self.share == 1 else f"share {self.share} of {head_dim} is {width}"
            raise ValueError(
                f"{part}; rotary positions need an even number of rotated components, at least 2: change head_dim or "
                "attention.rope.share"
            )
        for name in ("short_factors", "long_factors"):
            factors = getattr(scaling, name)
            if factors and len(factors) != width // 2:
                raise ValueError(
                    f"attention.rope.scaling.{name} lists {len(factors)} numbers; expected {width // 2}, one for each "
                    "pair of rotated components"
                )


def _form(value: Any) -> str:
    return " " if isinstance(value, list | tuple) else ""


Ropes = Annotated[
    Annotated[RopeConfig, Tag("")] | Annotated[tuple[RopeConfig, ...], Tag(" ")],
    Discriminator(_form),
]
"""One section for all layers, or a list with one per layer. The tags are blank so that messages name fields without
them."""
