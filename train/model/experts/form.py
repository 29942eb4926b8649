"""The form of the experts: activation, gate and biases. D width, E experts, F hidden width.

H is 2F where experts are gated (gate first), else F.
"""

from typing import NamedTuple

from torch import Tensor

from ..activation import activate
from ..config.sections import Activation


class ExpertForm(NamedTuple):
    """The form of the experts, besides their matrices."""

    activation: Activation = "silu"
    gated: bool = True
    gate_up_bias: Tensor | None = None  # (E, H)
    down_bias: Tensor | None = None  # (E, D)

    def inner(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """Compute act(gate) * up of gate|up (..., 2F), or act(up) of (..., F), after adding the bias."""
        hidden = hidden if bias is None else hidden + bias
        if not self.gated:
            return activate(self.activation, hidden)
        gate, up = hidden.chunk(2, -1)
        return activate(self.activation, gate) * up


SWIGLU = ExpertForm()
"""Experts without biases, as in Mixtral."""
