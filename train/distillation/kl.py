"""Divergences between the distributions of a teacher, p, and of a model, q.

B batch, T time, V tokens of the tokenizer, K stored tokens of the teacher, C classes that are compared.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.distillation import Divergence


class TopTokens(NamedTuple):
    """The teacher's distribution as stored: K tokens, in order of probability, and all others as one class.

    The logarithms are those of probabilities at the temperature of the divergence.
    """

    ids: Tensor  # (B, T, K) int64
    log_probs: Tensor  # (B, T, K) float32
    rest: Tensor  # (B, T) float32: log of the mass of the tokens that are not among the K; not used where K = V


class Classes(NamedTuple):
    """Two distributions over the same classes, each (B, T, C) float32 log probabilities."""

    teacher: Tensor
    model: Tensor


def whole_classes(teacher_logits: Tensor, logits: Tensor, temperature: float) -> Classes:
    """Return both distributions over all V tokens, from logits (B, T, V)."""
    soft = (each.float() / temperature for each in (teacher_logits, logits))
    teacher, model = (each.log_softmax(-1) for each in soft)
    return Classes(teacher, model)


def top_classes(top: TopTokens, logits: Tensor, temperature: float) -> Classes:
    """Return both distributions over the teacher's K tokens and the rest, from the model's logits (B, T, V).

    Joining classes never increases a divergence (data processing), so those of `top_classes` are at most those of
    `whole_classes`, and equal at K = V.
    """
    logits = logits.float() / temperature
    total = logits.logsumexp(-1, keepdim=True)  # (B, T, 1)
    model = logits.gather(-1, top.ids) - total
    if top.ids.shape[-1] == logits.shape[-1]:
        return Classes(top.log_probs.log_softmax(-1), model)
    others = logits.scatter(-1, top.ids, float("-inf")).logsumexp(-1, keepdim=True) - total
    teacher = torch.cat([top.log_probs, top.rest[..., None]], -1)
    return Classes(teacher.log_softmax(-1), torch.cat([model, others], -1))  # stored numbers are rounded: normed again


def forward_kl(classes: Classes) -> Tensor:
    """KL(p || q) of each token in nats, (B, T)."""
    return (classes.teacher.exp() * (classes.teacher - classes.model)).sum(-1)


def reverse_kl(classes: Classes) -> Tensor:
    """KL(q || p) of each token in nats, (B, T)."""
    return (classes.model.exp() * (classes.model - classes.teacher)).sum(-1)


def divergence(kind: Divergence, classes: Classes, reverse_share: float = 0.5) -> Tensor:
    """Return the divergence of a kind for each token in nats, (B, T); `reverse_share` belongs to `mix`."""
    if kind == "forward":
        return forward_kl(classes)
    if kind == "reverse":
        return reverse_kl(classes)
    return torch.lerp(forward_kl(classes), reverse_kl(classes), reverse_share)


def top_tokens(logits: Tensor, count: int, temperature: float) -> TopTokens:
    """Return the `count` most probable tokens of logits (B, T, V) and the mass of the rest; all V where count >= V."""
    log_probs = (logits.float() / temperature).log_softmax(-1)
    top = log_probs.topk(min(count, logits.shape[-1]), -1)
    rest = log_probs.scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    return TopTokens(top.indices, top.values, rest)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token, (B, T), from logits (B, T, V) and targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
