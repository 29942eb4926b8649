"""Which operators run each mechanism of a model in the graph of the target `cuda`, and whether they skip."""

from ...runtime.format.manifest import Executor, Precisions
from ...train.model.config.model import ModelConfig
from .attention import is_grouped
from .experts import computes_all, is_fused

STANDARD: Executor = "standard operators"
MIXED: Executor = "contrib or standard operators by layer"
CONTRIB: Executor = "contrib operators"
MASKED: Executor = "standard operators (all computed)"
SKIPPED: Executor = "standard operators (skipped where no token runs)"


def mechanisms(config: ModelConfig, precisions: Precisions) -> dict[str, Executor]:
    """Return the operators of each mechanism that the model has."""
    layers = range(config.num_layers)
    grouped = [is_grouped(config, precisions, i) for i in layers if config.attends(i)]
    attention: Executor = CONTRIB if all(grouped) else MIXED if any(grouped) else STANDARD
    rows: dict[str, tuple[bool, Executor]] = {
        "embedding": (True, STANDARD),
        "attention": (config.has_attention, attention),
        **dict.fromkeys(config.recurrent_mixers, (True, STANDARD)),
        "contextual positions": (any(config.positions_of(i) == "cope" for i in layers), STANDARD),
        "windows": (config.has_windows, STANDARD),
        "head routing": (config.heads.routing != "all", MASKED),
        "experts": (config.ffn.routing != "dense", _experts(config)),
        "dense feed-forward": (any(config.is_dense(i) for i in layers), STANDARD),
        "depth routing": (any(config.has_depth_router(i) for i in layers), SKIPPED),
        "early exits": (bool(config.depth.exit_layers), SKIPPED),
        "output head": (True, STANDARD),
    }
    return {name: executor for name, (present, executor) in rows.items() if present}


def _experts(config: ModelConfig) -> Executor:
    if not is_fused(config):
        return STANDARD
    return "contrib operators (all computed)" if computes_all(config.ffn) else CONTRIB
