"""What `adaptive inspect` found: the figures of one text, and their JSON object."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dial import Thresholds
from ..execution.usage.cost import Usage
from ..format.manifest import Mixer
from .figures import Choice, Part, Split, WindowUse
from .saturation import Saturation
from .token_groups import Grouping


@dataclass(frozen=True)
class Inspection:
    """The usage of a model for the tokens of a text, at one point of its dial."""

    model: str
    """Its folder, or its run and step."""
    text: str
    """Name of the text."""
    tokens: int
    """Tokens read."""
    unknown: int
    """Tokens that the tokenizer does not know."""
    thresholds: Thresholds
    executed_share: float
    """Share of the dense FLOPs."""
    dead_below: float
    groupings: tuple[Grouping, ...]
    """Classes, positions, tokens; and tasks, where the run has several."""
    parts: tuple[Part, ...]
    """Experts, heads and layers."""
    window_uses: tuple[WindowUse, ...]
    sample: tuple[tuple[str, Usage], ...]
    """Text and usage of the first tokens."""
    mixers: tuple[Mixer, ...]
    """The token mixer of each layer."""
    weight_bytes: int
    """Bytes of the files of the graph that ran."""
    cache_bytes: int
    """Bytes of the keys and values of a text as long as the context."""
    state_bytes: int
    """Bytes of the states of a text of any length."""
    saturations: tuple[Saturation, ...]
    """Saturation of experts and of heads, if the run has kept their choices."""
    warnings: tuple[str, ...]
    """Reasons to read the figures with care."""
    teacher: str | None = None
    """The model that it learned from, if there was one."""

    def part(self, name: str) -> Part | None:
        """Return the part of one kind, if the model has it."""
        return next((part for part in self.parts if part.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """Return the object of `inspect --json`. What could not be measured is null."""
        content = {
            "model": self.model, "teacher": self.teacher, "text": self.text, "tokens": self.tokens,
            "unknown_tokens": self.unknown,
            "executed_flops_share": self.executed_share,
            "dead_below": self.dead_below,
            "mixers": self.mixers,
            "memory": {"weight_bytes": self.weight_bytes, "cache_bytes": self.cache_bytes,
                       "state_bytes": self.state_bytes},
            "groups": {one.name: _rows(one.labels, tokens=one.tokens) for one in self.groupings},
            **{name: self._part(name) for name in ("experts", "heads", "layers")},
            "zero_experts": self._part("zero-computation experts"),
            "windows": [self._window_use(use) for use in self.window_uses] or None,
            "saturation": {one.name: one.as_json() for one in self.saturations} or None,
        }  # fmt: skip
        # Thresholds are not rounded: one near 1 is not 1.
        return {"thresholds": self.thresholds.as_lists()} | {key: _plain(value) for key, value in content.items()}

    def _part(self, name: str) -> dict[str, Any] | None:
        part = self.part(name)
        if part is None:
            return None
        groups = {one.name: _rows(one.labels, per_token=part.per_group(i)) for i, one in enumerate(self.groupings)}
        return {"per_token": vars(part.per_token), "per_token_of": groups,
                "choices": [_choice(choice) for choice in part.choices]}  # fmt: skip

    def _window_use(self, use: WindowUse) -> dict[str, Any]:
        pairs = zip(self.groupings, use.by_group, strict=True)
        groups = {one.name: _rows(one.labels, window=means) for one, means in pairs}
        return {"layer": use.layer, "most": use.most, "window": vars(use.window), "window_of": groups}


def _choice(choice: Choice) -> dict[str, Any]:
    pair = choice.strongest_pair
    return {
        "layer": choice.layer, "tokens": choice.tokens, "chosen_by_router": choice.free, "share": choice.share,
        "per_token": vars(choice.per_token), "how_many": choice.how_many,
        "entropy": choice.entropy, "normalised_entropy": choice.normalised_entropy, "effective": choice.effective,
        "dead": choice.dead, "coactivation": choice.coactivation, "strongest_pair": pair,
        "by": {one.name: _split(one) for one in choice.splits},
    }  # fmt: skip


def _split(split: Split) -> dict[str, Any]:
    groups = _rows(split.labels, tokens=split.tokens, share=split.share)
    return {"mutual_information": split.information, "specialisation": split.specialisation,
            "by_chance": split.by_chance, "groups": groups}  # fmt: skip


def _rows(labels: Sequence[str], **columns: Any) -> list[dict[str, Any]]:
    return [{"label": label, **{name: column[i] for name, column in columns.items()}} for i, label in enumerate(labels)]


def _plain(value: Any) -> Any:
    """Convert for JSON: six decimals, and None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return value
