"""Early exits: how sure the model is of its next token after a layer. V vocabulary, D width."""

import math

import torch
from torch import Tensor, nn

from ..config.sections import ExitCriterion


class ExitRouter(nn.Module):
    """sigmoid(w . x + b): the probability that the last layer would choose the same token.

    It needs no product with the output head. Source: CALM, Schuster et al. 2022 (arXiv 2207.07061), section 3.5, the
    early-exit classifier.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of normed x (..., D), (...) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ self.weight.float() + self.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of normed x (..., D), (...) float32."""
        return self.logits(x).sigmoid()


def confidence(criterion: ExitCriterion, logits: Tensor) -> Tensor:
    """Return the confidence of logits (..., V), (...) float32 in 0..1.

    Source: CALM (arXiv 2207.07061), section 3.5; entropy as in BranchyNet (arXiv 1709.01686), reversed so that 1 is
    certain.
    """
    log_probs = logits.float().log_softmax(-1)
    if criterion == "entropy":
        return 1 + (log_probs.exp() * log_probs).sum(-1) / math.log(logits.shape[-1])
    if criterion == "margin":
        first, second = log_probs.exp().topk(2, -1).values.unbind(-1)
        return first - second
    assert criterion == "top_prob"
    return log_probs.exp().amax(-1)


def agreement_targets(early: Tensor, last: Tensor) -> Tensor:
    """Return the targets of an exit router: 1 where early and last logits (..., V) choose one token, (...) float32."""
    return (early.argmax(-1) == last.argmax(-1)).to(torch.float32)
