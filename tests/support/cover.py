"""The fewest models that have every mechanism, for tests that would be slow with all of them."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from adaptive_lm.train.model import ModelConfig


def covering(configs: Mapping[str, ModelConfig]) -> list[str]:
    """Return names of models that together have every setting of `configs` that is not the default.

    Greedy: each next model adds the most settings that the ones before have not, the earlier one of equals. A model of
    a new mechanism is so among them without being listed anywhere.
    """
    missing = {name: set(settings(config)) for name, config in configs.items()}
    names: list[str] = []
    while any(missing.values()):
        best = max(missing, key=lambda name: len(missing[name]))
        names.append(best)
        new = missing.pop(best)
        for rest in missing.values():
            rest -= new
    return [name for name in configs if name in names]


def settings(config: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the settings that differ from the default: a word with its value, anything else by its field alone."""
    for name, field in type(config).model_fields.items():
        value, at = getattr(config, name), f"{path}{name}"
        if value == field.get_default() or at in SIZES:
            continue
        if isinstance(value, BaseModel):
            yield from settings(value, f"{at}.")
        else:
            yield from (f"{at}: {kind}" for kind in kinds(value))


SIZES = ("vocab_size", "context_length", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
"""Fields that every tiny model sets."""


def kinds(value: Any) -> set[str]:
    """Return the kinds of a value: a word itself, of a list each of its items, anything else its type."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, BaseModel):
        return set(settings(value))
    if isinstance(value, (list, tuple)):
        return set().union(*(kinds(each) for each in value))
    return {type(value).__name__}


def in_each(names: Iterable[str], cover: Iterable[str], forms: Sequence[Any]) -> list[tuple[str, Any]]:
    """Pair the models of `cover` with every form, and all others with the first form alone."""
    covered = set(cover)
    return [(name, form) for name in names for form in (forms if name in covered else forms[:1])]


def rest_slow(cases: Iterable[Any], short: Container[Any]) -> list[Any]:
    """Mark all cases as slow but those of the short form, which `make test` runs too."""

    def values(case: Any) -> tuple[Any, ...]:
        return case if isinstance(case, tuple) else (case,)

    return [case if case in short else pytest.param(*values(case), marks=pytest.mark.slow) for case in cases]


def by_turns(firsts: Sequence[Any], seconds: Sequence[Any], thirds: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Return triples with every first and second value together, and thirds that alternate.

    With two seconds and two thirds, every two values of different parameters are together in some triple.
    """
    return [
        (one, other, thirds[(i // 2 + j) % len(thirds)])
        for i, one in enumerate(firsts)
        for j, other in enumerate(seconds)
    ]
