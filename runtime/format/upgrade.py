"""Upgrade the manifest of an older format version to the current one.

| version | what changed |
|---|---|
| 1 | the first |
| 2 | `costs.*.head`, the cost of the output head, is called `lm_head`: `head` is an attention head everywhere |
| 3 | a layer may have a recurrent mixer, with `states` in place of a KV cache, and a token may use no expert
(`zero_experts`, ReLU routing); only such models are written as 3 |
"""

from collections.abc import Callable, Mapping
from typing import Any

FORMAT_VERSION = 3
"""The newest version. A change that an older reader would misunderstand needs a new one."""

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


def _unchanged(content: Content) -> Content:
    return content


UPGRADES: Mapping[int, Callable[[Content], Content]] = {1: _rename_lm_head, 2: _unchanged}
"""For each older version, the step to the next one."""


def upgrade(content: Content) -> Content:
    """Return `content` in the current format version; content of an unknown version comes back unchanged."""
    version = content.get("format_version")
    while isinstance(version, int) and version in UPGRADES:
        content = UPGRADES[version](content) | {"format_version": version + 1}
        version += 1
    return content


def written_version(*, has_states: bool, may_have_no_experts: bool) -> int:
    """Return the oldest version that describes a model.

    A program that knows no states, or no tokens without an expert, must refuse a model that has them: it would find
    other inputs and outputs than it knows in the graph, and could only call the model damaged.
    """
    return FORMAT_VERSION if has_states or may_have_no_experts else 2
