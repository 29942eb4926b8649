"""YAML as every file and setting of a run is read and written: the values of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, in which `on` is true, 010 is 8, 1:30 is 90, 1e3 is text, and the last of two equal keys wins.
Here values are those of the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): true, false, null,
~, 10, 0o12, 0xA, 1e3, .inf and .nan. Everything else is text, dates included. Anchors and aliases are read, unless one
contains itself. Merge keys (`<<`) are not part of YAML 1.2, so `<<` is a key like any other.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

PREFIX = "tag:yaml.org,2002:"
MAX_VALUES = 1_000_000
"""A few aliases of aliases expand to billions of values; a table of synonyms has some hundred thousand."""
CORE: Mapping[str, str] = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
WRITTEN: Mapping[str, str] = {
    **CORE,
    "int": r"-?(0|[1-9][0-9]*)",
    "float": r"-?[0-9]+\.[0-9]+(e[-+][0-9]+)?|-?\.inf|\.nan",
}
"""Values as this program writes them. Its first releases wrote YAML 1.1 and left texts such as 1e3 and 08 unquoted."""
READ: Mapping[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


def load_yaml(content: str | bytes, *, written: bool = False) -> Any:
    """Read the one YAML document of a file.

    Args:
        content: the file; bytes may be UTF-8 or UTF-16.
        written: whether this program wrote it, any of its releases.

    Raises:
        ValueError: it is no YAML, or a key is given twice; the message is one line, with the place.
    """
    return _load(content, _WrittenReader if written else _Reader)


def load_setting(text: str) -> Any:
    """Read a value typed in a shell: a list, a mapping or a quoted text as in YAML, and anything else as it stands.

    A plain value is null, true or false, a number, or text; in none of them does `#` begin a comment.

    Raises:
        ValueError: a bracket or quote is not closed, or text follows it.
    """
    text = text.strip()
    return _load(text, _SettingReader) if text[:1] in ("[", "{", '"', "'") else _value(_kind(text), text)


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Write YAML that `load_yaml` reads back to the same values; a parser of YAML 1.1 does too."""
    return yaml.dump(content, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=110)


def _load(content: str | bytes, reader: type["_Reader"]) -> Any:
    try:
        values = yaml.load(content, Loader=reader)  # noqa: S506  # a SafeLoader, and stricter
        if _expanded_size(values, {}) > MAX_VALUES:
            raise ValueError(f"its aliases expand to more than {MAX_VALUES:,} values; write fewer aliases of aliases")
        return values
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "not YAML"
        if error.context and problem.startswith("but "):
            problem = f"{error.context} {problem}"
        raise ValueError(f"{place}{problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("lists or mappings are nested too deep") from None


def _expanded_size(value: Any, sizes: dict[int, int]) -> int:
    """Count the values in `value`, those behind an alias as often as it is used; `sizes` holds what was counted."""
    if not isinstance(value, (list, dict)):
        return 1
    if id(value) not in sizes:
        parts = value if isinstance(value, list) else value.values()
        sizes[id(value)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return sizes[id(value)]


def _kind(text: str) -> str:
    return next((kind for kind, pattern in CORE.items() if re.fullmatch(pattern, text)), "str")


def _value(kind: str, text: str) -> Any:
    try:
        return READ[kind](text)
    except (ValueError, KeyError):  # an explicit tag such as `!!int x`, or more digits than Python reads
        raise ValueError(f"{text if len(text) < 40 else text[:40] + '...'!r} cannot be read as {kind}") from None


class _Reader(yaml.SafeLoader):
    """Read the core schema."""

    def value(self, node: Node) -> Any:
        kind = node.tag.removeprefix(PREFIX)
        if isinstance(node, ScalarNode) and kind in READ:
            try:
                return _value(kind, node.value)
            except ValueError as error:
                raise ConstructorError(problem=str(error), problem_mark=node.start_mark) from None
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.construct_object(each, deep=True) for each in node.value]
        if isinstance(node, MappingNode) and kind == "map":
            return self.mapping(node)
        raise ConstructorError(problem=f"the tag {node.tag} is not supported here", problem_mark=node.start_mark)

    def mapping(self, node: MappingNode) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            if not isinstance(key, Hashable):
                raise ConstructorError(problem="a list or a mapping cannot be a key", problem_mark=mark)
            if key in values:
                problem = f"the key {key!r} is given twice, here and in line {lines[key]}; keep one"
                raise ConstructorError(problem=problem, problem_mark=mark)
            values[key], lines[key] = self.construct_object(value_node, deep=True), mark.line + 1
        return values


class _WrittenReader(_Reader):
    """Read what this program has written."""


class _SettingReader(_Reader):
    """Read a value in which `#` begins no comment."""

    def scan_to_next_token(self) -> None:
        while self.peek() in (" ", "\n", "\r"):
            self.forward()


class _Writer(yaml.SafeDumper):
    """Quote every text that YAML 1.1 or YAML 1.2 reads as something else, and write no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> Node:
        """Escape line breaks: PyYAML 6.0 does not read back what it writes of next line and line separators."""
        return self.represent_scalar(
            f"{PREFIX}str", data, style='"' if re.search("[\n\r\x85\u2028\u2029]", data) else None
        )


# Without the values and the tags of YAML 1.1.
_Reader.yaml_implicit_resolvers, _WrittenReader.yaml_implicit_resolvers, _Reader.yaml_constructors = {}, {}, {}
_Reader.add_constructor(None, _Reader.value)
_Writer.add_representer(str, _Writer.text)
for _class, _schema in ((_Reader, CORE), (_WrittenReader, WRITTEN), (_Writer, CORE)):
    for _name, _pattern in _schema.items():
        _class.add_implicit_resolver(PREFIX + _name, re.compile(rf"(?:{_pattern})\Z"), None)
