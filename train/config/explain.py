"""Messages for a config that breaks a rule."""

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

MAX_SHOWN = 200  # characters of a value in a message


def explain(error: ValidationError, whole: type[BaseModel]) -> str:
    """Write one line per problem: the field, the value found, the rule."""
    lines = []
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"]]
        field = ".".join(part for part in parts if part.strip())  # tags of unions are blank
        if problem["type"] == "extra_forbidden":
            leaf = str(problem["loc"][-1])
            dotted = f"{leaf!r} is a dotted key, which --set takes; in a file write {_nested(leaf)}"
            lines.append(dotted if "." in leaf.strip(".") else unknown_key(field, whole))
            continue
        rule = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        value = problem["input"]
        if problem["type"] == "string_type" and isinstance(value, bool | int | float):
            rule = f"expected text; put text that looks like a number in quotes, as in --set '{field}=\"1e-3\"'"
        elif problem["type"] == "model_type":
            rule = "expected a section: keys below it, each with a value; fill it or leave it out"
        elif problem["type"] == "tuple_type":
            rule = f"expected a list, as in --set '{field}=[a, b]'"
        shown = "" if isinstance(value, (Mapping, BaseModel)) else f" found {_shortened(value)},"
        lines.append(f"{field}:{shown} {rule}" if field else rule)
    lines.append("See all fields: adaptive train --print-config")
    return "\n  ".join(["the config has problems:", *lines] if len(lines) > 2 else lines)


def _nested(key: str) -> str:
    """Write a dotted key as YAML: `a.b` as `a: {b: ...}`."""
    first, *rest = key.split(".")
    return f"{first}: {{{_nested('.'.join(rest))}}}" if rest else f"{first}: ..."


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """List every dotted key, sections included."""
    keys = []
    for name, info in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        inner = type(info.default) if isinstance(info.default, BaseModel) else info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def unknown_key(key: str, whole: type[BaseModel]) -> str:
    """Write the message for a key that does not exist; suggest the same key of another section, else a similar key."""
    keys = known_keys(whole)
    leaf = key.rpartition(".")[2]
    same_leaf = [each for each in keys if each.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not near:
        leaves = {each.rpartition(".")[2]: each for each in keys}
        near = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no key {key!r}{hint}"
