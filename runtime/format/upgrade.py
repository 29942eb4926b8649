"""Upgrade the manifest of an older format version to the current one.

| version | what changed |
|---|---|
| 1 | the first |
| 2 | `costs.*.head`, the cost of the output head, is called `lm_head`: `head` is an attention head everywhere |
"""

from collections.abc import Callable, Mapping
from typing import Any

FORMAT_VERSION = 2
"""The version that export writes. A change that an older reader would misunderstand needs a new one."""

Content = dict[str, Any]


def _rename_lm_head(content: Content) -> Content:
    costs = content.get("costs")
    if not isinstance(costs, dict):
        return content  # damaged: the schema says where
    tables = {
        name: {"lm_head" if key == "head" else key: value for key, value in table.items()}
        for name, table in costs.items()
        if isinstance(table, dict)
    }
    return content | {"costs": costs | tables}


UPGRADES: Mapping[int, Callable[[Content], Content]] = {1: _rename_lm_head}
"""For each older version, the step to the next one."""


def upgrade(content: Content) -> Content:
    """Return `content` in the current format version; content of an unknown version comes back unchanged."""
    version = content.get("format_version")
    while isinstance(version, int) and version in UPGRADES:
        content = UPGRADES[version](content) | {"format_version": version + 1}
        version += 1
    return content
