"""What all mixers with a state share. B batch, T time, D width, H heads, K width of keys, V width of values."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from .compaction import compact, in_place
from .kernels import run_kernel, serve
from .recurrence import chunked, recurrent

STEPS = (1e-3, 1e-1)
"""Range of the steps of time that the decays of `mamba2` and `gated_delta` start with."""


class Mixer(nn.Module):
    """A token mixer whose memory of a sequence is a state of constant size, in place of keys and values.

    Subclasses give `mix`, from normed hidden states of consecutive tokens to the update of the residual stream. Their
    recurrence and everything between its inputs and its output is computed in float32, also under autocast.
    """

    plain = False
    """Whether to compute token by token; slow, and the judge of the chunked form."""
    kernels = staticmethod(serve)
    """Whether the kernels of `fla` run the recurrence, by a projection of the input (B, T, .)."""
    drawn: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that `draw` gives their first values; `initialize` of the model draws all others."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.head_dim = config.num_heads, config.state_head_dim
        self.chunk = config.recurrence.chunk

    def forward(self, x: Tensor, present: Tensor | None, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix x (B, T, D), normed -> (B, T, D).

        Tokens that are not present leave the state as it is, and their rows are 0.

        Args:
            x: (B, T, D).
            present: (B, T) bool, the tokens that run the layer; None for all.
            rotary: The two tables of `rotary_tables`, each (T, R / 2); None without rotary positions.
        """
        if present is None:
            return self.mix(x, rotary)
        rows, order = compact(x, present)
        if rotary is not None:
            cos, sin = (table[order][:, None] for table in rotary)  # (B, 1, T, R / 2): a token keeps its position
            rotary = cos, sin
        return in_place(self.mix(rows, rotary), present)

    def mix(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix consecutive tokens x (B, T, D) -> (B, T, D); `rotary` is (T, R / 2) or (B, 1, T, R / 2)."""
        raise NotImplementedError

    def draw(self) -> None:
        """Draw the first values of the parameters in `drawn`."""

    def recur(self, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, like: Tensor) -> Tensor:
        """Run the recurrence with one decay per head: see `recurrence.py` -> (B, T, H, V).

        Args:
            r: (B, T, H or 1, K).
            k: As r.
            v: (B, T, H, V).
            log_w: (H,) or (B, T, H).
            like: A projection of the input, whose device and dtype decide whether a kernel runs.
        """
        if self.plain:
            return recurrent(r, k, v, log_w)[0]
        if self.kernels(like):
            r, k = (one.expand(*v.shape[:3], -1) for one in (r, k))
            return run_kernel("simple_gla", like.dtype, r, k, v, log_w.expand(v.shape[:3]))
        return chunked(r, k, v, log_w, self.chunk)[0]

    def heads(self, x: Tensor) -> Tensor:
        """Split x (B, T, H W) into heads (B, T, H, W) float32."""
        return wide(x).view(*x.shape[:-1], self.num_heads, self.head_dim)


def first_steps(heads: int) -> Tensor:
    """Draw values (H,) whose softplus is even in its logarithm over STEPS."""
    steps = torch.empty(heads).uniform_(*(math.log(each) for each in STEPS)).exp()
    return steps + (-(-steps).expm1()).log()


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> torch.autocast:
    """Return the context in which nothing is rounded to bfloat16."""
    return torch.autocast(x.device.type, enabled=False)
