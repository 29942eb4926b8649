"""Optimizers, learning rate schedules, clipping and batch sizes.

Names are imported when they are first used, so that the config of a run loads without torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch_size import BatchChange
    from .clipping import Clipping
    from .optimizer import Optimizers
    from .optimizer_config import OptimizerConfig
    from .schedule_config import ScheduleConfig
else:
    from ...contract.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "BatchChange": "batch_size",
            "Clipping": "clipping",
            "OptimizerConfig": "optimizer_config",
            "Optimizers": "optimizer",
            "ScheduleConfig": "schedule_config",
        },
    )

__all__ = ["BatchChange", "Clipping", "OptimizerConfig", "Optimizers", "ScheduleConfig"]
