"""The ways to lie a model over ranks, by name: the config knows them and imports nothing of them."""

from typing import Literal

Parallel = Literal["replicate", "shard", "experts"]
