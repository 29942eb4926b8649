"""The words for a config that does not hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, whole: type[BaseModel]) -> str:
    """One line per problem: the field, the value found, the rule."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(unknown_key(field, whole))
            continue
        rule = problem["msg"].removeprefix("Value error, ")
        rule = rule.replace("Input should be", "expected").replace("Extra inputs are", "")
        found = problem["input"]
        shown = "" if isinstance(found, (Mapping, BaseModel)) else f" found {found!r},"
        lines.append(f"{field}:{shown} {rule}" if field else rule)
    lines.append("See all fields: adaptive train --print-config")
    return "\n  ".join(["the config does not hold:", *lines] if len(lines) > 2 else lines)


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key, sections included."""
    keys = []
    for name, info in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def unknown_key(key: str, whole: type[BaseModel]) -> str:
    """The words for a key that does not exist: the nearest in its own section, else the same name in another."""
    known = known_keys(whole)
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        leaves = {k.rpartition(".")[2]: k for k in known}
        near = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no key {key!r}{hint}"
