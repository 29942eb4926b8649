"""Choices of experts by tokens, with the edge cases, and their plain result. N tokens, E experts, D width, F hidden."""

import torch
from torch import Tensor

from adaptive_lm.train.model.experts.form import SWIGLU, ExpertForm

EXPERTS = 5


def routed(chosen: str, tokens: int = 23) -> Tensor:
    """Return a seeded choice, (N, E) bool; `chosen` is one of `CHOICES`."""
    selected = torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(1)) < 0.4
    if chosen == "some_experts_empty":
        selected[:, [0, 3]] = False
    elif chosen == "last_expert_empty":
        selected[:, -1] = False
    elif chosen == "no_pairs":
        selected[:] = False
    elif chosen == "all_pairs":
        selected[:] = True
    elif chosen == "one_pair":
        selected[:] = False
        selected[7, 2] = True
    elif chosen == "some_tokens_skip":
        selected[::3] = False
    return selected


CHOICES = [
    "mixed",
    "some_experts_empty",
    "last_expert_empty",
    "no_pairs",
    "one_pair",
    "all_pairs",
    "some_tokens_skip",
]


def run_experts_plainly(
    x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, form: ExpertForm = SWIGLU
) -> Tensor:
    """Return what `run_experts` returns by running every expert for every token."""
    bias = None if form.gate_up_bias is None else form.gate_up_bias[:, None]
    inner = form.inner(torch.einsum("nd,edf->enf", x, gate_up), bias)  # (E, N, F)
    every = torch.einsum("enf,efd->end", inner, down)  # (E, N, D)
    if form.down_bias is not None:
        every = every + form.down_bias[:, None]
    return torch.einsum("end,ne->nd", every, torch.where(selected, weights, 0.0).to(x.dtype))
