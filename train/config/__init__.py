"""The configuration of a run, one file per section that no other package owns; loads no torch."""

from .gates import GatesConfig
from .monitor import MonitorConfig
from .run_config import RECIPES, RunConfig, make_config, parse_setting, read_recipe
from .trainer import TrainerConfig

__all__ = [
    "RECIPES",
    "GatesConfig",
    "MonitorConfig",
    "RunConfig",
    "TrainerConfig",
    "make_config",
    "parse_setting",
    "read_recipe",
]
