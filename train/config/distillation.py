"""The sections `distillation` and `self_distillation` of a run's config: learning from a teacher, or from itself."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..model.config.model import ModelConfig
from ..system.section import Section

Divergence = Literal["forward", "reverse", "mix"]


class TeacherConfig(Section):
    """The model that a run learns from; `adaptive train --teacher` sets it."""

    model: str = Field(min_length=1)
    """Name or folder of a run, folder of an exported model whose run is here, folder of a Hugging Face model, or a
    .gguf file."""
    checkpoint: str = Field("last", pattern=r"^(best|last|\d+)$")
    """Checkpoint of a run: `best`, `last`, or its step. The program fills in the step."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the weights; other weights are refused. The program fills it in."""


class DistillationConfig(Section):
    """Learning from the outputs of a larger model that was trained before (Hinton et al. 2015, arXiv 1503.02531).

    The loss is (1 - weight) x cross-entropy of the text + weight x temperature^2 x divergence from the teacher
    + hidden_weight x distance of hidden states, and the auxiliary losses as without a teacher.
    """

    teacher: TeacherConfig
    """The model to learn from."""
    weight: float = Field(0.5, gt=0, le=1)
    """Weight of the teacher, above 0 to 1; the cross-entropy of the text has the rest. With 1 the text itself teaches
    nothing."""
    divergence: Divergence = "forward"
    """Distance between the distributions p of the teacher and q of the model. `forward`: KL(p || q), which covers all
    that the teacher holds possible. `reverse`: KL(q || p), which avoids what the teacher holds impossible (MiniLLM,
    arXiv 2306.08543). `mix`: both, see `reverse_share`."""
    reverse_share: float = Field(0.5, ge=0, le=1)
    """Share of the reverse KL under `mix`, 0 to 1."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divisor of the logits of both models in the divergence, above 0 to 100. Above 1, tokens that the teacher holds
    unlikely count more."""
    top_k: int = Field(16, ge=0, le=65535)
    """Most probable tokens of the teacher that are stored for each token of the text, with the mass of all others
    together, before the first step; a later run with the same text and teacher finds them in the cache folder. 0 stores
    nothing: the teacher runs in every step, and its whole distribution counts."""
    stored_gib: float = Field(8.0, gt=0)
    """Most GiB of stored outputs, above 0; the run refuses to begin if they need more."""
    hidden_layers: tuple[tuple[int, int], ...] = ()
    """Pairs of a layer of the model and a layer of the teacher, counted from 0: the state after the first, by a matrix
    that is learned with it, should be the state after the second (FitNets, arXiv 1412.6550). Needs `top_k` 0."""
    hidden_weight: float = Field(1.0, gt=0)
    """Weight of the mean squared distance of those states, above 0. The teacher's are normed to a mean square of 1."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_teacher(cls, given: Any) -> Any:
        """Refuse the section without a teacher, with the option that names one."""
        if isinstance(given, Mapping) and not given.get("teacher"):
            raise ValueError("distillation needs a teacher: name one with --teacher RUN, or leave the section out")
        return given

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.hidden_layers and self.top_k:
            raise ValueError(
                f"hidden_layers is set, but only outputs can be stored (top_k {self.top_k}): set top_k to 0, so that "
                "the teacher runs in every step, or leave hidden_layers out"
            )
        if not self.hidden_layers and self.hidden_weight != 1:
            raise ValueError(
                f"hidden_weight is {self.hidden_weight}, but hidden_layers is empty: name pairs of layers, as in "
                "[[1, 3]], or leave it out"
            )
        if self.divergence != "mix" and self.reverse_share != 0.5:
            raise ValueError(
                f"reverse_share is {self.reverse_share}, but divergence is {self.divergence}: set divergence to mix, "
                "or leave it out"
            )
        return self

    def fit(self, model: ModelConfig) -> None:
        """Raise ValueError where the layers are not layers of `model`."""
        for own, _ in self.hidden_layers:
            if not 0 <= own < model.num_layers:
                raise ValueError(
                    f"distillation.hidden_layers names layer {own} of the model; expected 0 to {model.num_layers - 1}"
                )


class SelfDistillationConfig(Section):
    """Learning of shallow and narrow dials from the full one in the same step (Slimmable networks, arXiv 1903.05134).

    The teacher is the pass that is trained on the text, at the thresholds of its controllers; no gradient reaches it
    from here, so its own loss is the same as without.
    """

    exits: float = Field(0.0, ge=0)
    """Weight of KL(full || exit), a mean over the early exits, 0 or more; in addition to `losses.exit_loss`."""
    dials: float = Field(0.0, ge=0)
    """Weight of KL(full || narrow), 0 or more: a second pass of some sequences at thresholds drawn for each step, with
    fewer experts, heads and layers, and tokens that leave early."""
    least: float = Field(0.0, ge=0, lt=1)
    """Least factor on the thresholds of the second pass, 0 to below 1. Each mechanism draws its own from here to 1: 1
    is the full dial, 0 is one expert, the fewest heads and no layer that a router decides about."""
    sequences: float = Field(0.5, gt=0, le=1)
    """Share of the sequences of a batch that take the second pass, above 0 to 1."""

    def fit(self, model: ModelConfig) -> None:
        """Raise ValueError where `model` has nothing that this section would train."""
        if not self.exits and not self.dials:
            raise ValueError("self_distillation: exits and dials are both 0: set one of them, or leave the section out")
        if self.exits and not model.depth.exit_layers:
            raise ValueError(
                f"self_distillation.exits is {self.exits}, but model.depth.exit_layers is empty: name the layers after "
                "which tokens may leave, or leave it out"
            )
        if self.dials and not has_dial(model):
            raise ValueError(
                f"self_distillation.dials is {self.dials}, but the model has no threshold to lower: no experts by "
                "top_p, no heads by top_p or adaptive, no depth router and no exits; leave it out"
            )


def has_dial(model: ModelConfig) -> bool:
    """Return whether a threshold decides how much of the model runs."""
    return (
        model.ffn.routing == "top_p"
        or model.heads.routing in ("top_p", "adaptive")
        or model.depth.layers_share < 1
        or bool(model.depth.exit_layers)
    )
