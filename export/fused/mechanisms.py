"""Which operators run each mechanism of a model in the graph of the target `cpu`."""

from ...runtime.format.manifest import Executor
from ...train.model.config.model import ModelConfig


def mechanisms(config: ModelConfig) -> dict[str, Executor]:
    """Return the operators of each mechanism that the model has: our own for all of them."""
    layers = range(config.num_layers)
    present: dict[str, bool] = {
        "embedding": True,
        "attention": config.has_attention,
        **dict.fromkeys(map(str, config.recurrent_mixers), True),
        "contextual positions": any(config.positions_of(i) == "cope" for i in layers),
        "windows": config.has_windows,
        "head routing": config.heads.routing != "all",
        "experts": config.ffn.routing != "dense",
        "dense feed-forward": any(config.is_dense(i) for i in layers),
        "depth routing": any(config.has_depth_router(i) for i in layers),
        "early exits": bool(config.depth.exit_layers),
        "output head": True,
    }
    return {name: "our operators" for name, has in present.items() if has}
