"""Training by several processes ("ranks") that share each batch, on torch.distributed.

Only `Parallel` is defined here, so that the config can import it without torch.
"""

from typing import Literal

Parallel = Literal["replicate", "shard", "experts"]
"""Ways to distribute a model over ranks, implemented in `strategy.py`."""
