"""The config of mixers with a recurrent state."""

from typing import Literal

from pydantic import Field

from ...system.section import Section

MixerKind = Literal["attention", "mamba2", "rwkv7", "retnet", "gated_delta"]


class RecurrenceConfig(Section):
    """Sizes of the mixers with a recurrent state, in all layers that have one."""

    head_dim: int = Field(0, ge=0)
    """Width of the keys and of the values of one head; 0 means that of attention. There are `num_heads` heads."""
    conv: int = Field(4, ge=1, le=8)
    """Tokens that the short convolution of `mamba2` and `gated_delta` sees, the current one included, 1 to 8; 1 builds
    no convolution over earlier tokens."""
    chunk: int = Field(64, ge=1)
    """Tokens that training computes at once, at least 1; the state is carried from chunk to chunk. It changes the time
    of a step, not its result. `gated_delta` and `rwkv7` take at most 32."""
    rank: int = Field(0, ge=0)
    """Inner width of the low-rank matrices of `rwkv7`; 0 means dim / 8, rounded up to a multiple of 16."""

    def resolved_rank(self, dim: int) -> int:
        """Return `rank` of a model of that width, with its default filled in."""
        return self.rank or -(-dim // 128) * 16
