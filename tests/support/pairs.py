"""Choices of experts by tokens, with the edge cases. N tokens, E experts."""

import torch
from torch import Tensor

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
