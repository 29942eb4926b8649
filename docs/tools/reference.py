"""Write the reference pages from the code: config fields and manifest fields from pydantic, commands from click.

Markdown comes out; `hooks.py` puts it where a page says `<!-- generated: NAME -->`.
"""

import ast
import functools
import inspect
import itertools
import json
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "anything"}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
HUGE = 2**31
"""Bounds from here on only keep a number inside its machine type; a reader has no use for them."""


class Field(NamedTuple):
    """One documented field of a model."""

    path: str
    """Its full name, such as `trainer.steps`; `[]` stands for each item of a list."""
    type: str
    """Its type and range, in words."""
    default: str | None
    """Its default as YAML; None where it must be given."""
    text: str
    """The string literal below the field; "" where there is none."""


class Section(NamedTuple):
    """One model with its fields."""

    path: str
    text: str
    fields: list[Field]
    inner: list[str]
    """Paths of the sections that it always holds."""


@functools.cache
def config_sections() -> list[Section]:
    """Return all sections of a run's config."""
    from adaptive_lm.train.config import RunConfig

    return sections(RunConfig)


def manifest_sections() -> list[Section]:
    """Return all sections of an exported model's manifest."""
    from adaptive_lm.runtime import Manifest

    return sections(Manifest)


def sections(root: type[BaseModel]) -> list[Section]:
    """Return `root` and all models that its fields hold, each once, parents before their children."""
    places = _places(root)
    ordered: list[Section] = []

    def visit(model: type[BaseModel], path: str) -> None:
        if places[model] != path:  # a model that several fields hold is written where it is met first
            return
        inner = {name: info for name, info in model.model_fields.items() if _is_section(info)}
        fields = [
            _field(path, name, info, places, model) for name, info in model.model_fields.items() if name not in inner
        ]
        ordered.append(Section(path, _text_of(model), fields, [places[_section_of(info)] for info in inner.values()]))
        for child, child_path in _children(model, path):
            visit(child, child_path)

    visit(root, "")
    return ordered


def _is_section(info: FieldInfo) -> bool:
    """Say whether a field always holds one model: it is then a section of its own."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


def _section_of(info: FieldInfo) -> type[BaseModel]:
    assert isinstance(info.annotation, type)
    assert issubclass(info.annotation, BaseModel)
    return info.annotation


def _places(root: type[BaseModel]) -> dict[type[BaseModel], str]:
    """Map each model to the shortest path at which it is met."""
    places = {root: ""}
    waiting = [root]
    for model in waiting:  # grows while it is read: breadth first
        for child, path in _children(model, places[model]):
            if child not in places:
                places[child] = path
                waiting.append(child)
    return places


def _children(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    for name, info in model.model_fields.items():
        for child, items in _models_in(info.annotation):
            yield child, f"{path}.{name}{items}".lstrip(".")


def _models_in(annotation: Any, items: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the models in an annotation, each with `[]` where it is the item of a list, `.NAME` where of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, items
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return
    for argument in arguments:
        yield from _models_in(argument, "[]" if origin in (list, tuple) else ".NAME" if origin is dict else items)


def _field(
    section: str, name: str, info: FieldInfo, places: dict[type[BaseModel], str], model: type[BaseModel]
) -> Field:
    value = PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
    default = None if value is PydanticUndefined else json.dumps(value, default=str, ensure_ascii=False)
    words, ranges = type_in_words(info.annotation, places), range_in_words(info.metadata)
    path = f"{section}.{name}".lstrip(".")
    return Field(path, f"{words}, {ranges}" if ranges else words, default, documentation(model).get(name, ""))


def type_in_words(annotation: Any, places: dict[type[BaseModel], str]) -> str:
    """Say what a value of this type is, with links to the sections of models."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in PLAIN:
        return PLAIN[annotation]
    if annotation is None:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        path = places[annotation]
        return f"[section `{path}`](#{anchor(path)})"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        inner, *metadata = arguments
        words, ranges = type_in_words(inner, places), range_in_words(metadata)
        return f"{words} {ranges}" if ranges else words
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(each, places) for each in arguments))
    if origin in (list, tuple) and (origin is list or arguments[-1] is Ellipsis):
        return f"list of ({type_in_words(arguments[0], places)})"
    if origin is tuple:
        return f"[{', '.join(type_in_words(each, places) for each in arguments)}]"
    if origin is dict:
        return f"mapping of text to {type_in_words(arguments[1], places)}"
    return f"`{annotation}`"


def range_in_words(metadata: Sequence[Any]) -> str:
    """Say which values pass the bounds in `metadata` (annotated-types, or pydantic's own)."""
    parts = []
    for one in metadata:
        for one_rule in getattr(one, "metadata", None) or [one]:  # an Annotated alias keeps a FieldInfo inside
            bounds = ((words, getattr(one_rule, name, None)) for name, words in BOUNDS.items())
            parts += [f"{words} {bound}" for words, bound in bounds if bound is not None and abs(bound) < HUGE]
            if getattr(one_rule, "min_length", None):
                parts.append("not empty")
            if getattr(one_rule, "pattern", None):
                parts.append(f"matching `{one_rule.pattern}`")
    return ", ".join(parts)


def documentation(model: type[BaseModel]) -> dict[str, str]:
    """Map each field of `model`, inherited ones included, to the string literal below it."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                texts[field.target.id] = inspect.cleandoc(after.value.value)
    return texts


def _text_of(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def anchor(path: str) -> str:
    """Return the id of a section or field on its page."""
    return path.replace("[]", "-item") or "top-level"


def models_page(all_sections: Sequence[Section]) -> str:
    """Write sections and fields as Markdown: a heading for each, so that each has an address and is found by search."""
    lines: list[str] = []
    for section in all_sections:
        title = f"`{section.path}`" if section.path else "The top level"
        lines += [f"## {title} {{ #{anchor(section.path)} }}", "", section.text, ""]
        if section.inner:
            lines += ["Sections: " + ", ".join(f"[`{path}`](#{anchor(path)})" for path in section.inner), ""]
        for field in section.fields:
            default = "" if field.default is None else f" · default `{field.default}`"
            lines += [
                f"### `{field.path}` {{ #{anchor(field.path)}-field .field }}",
                "",
                f"*{field.type}{default}*",
                "",
            ]
            lines += [field.text, ""] if field.text else []
    return "\n".join(lines)


def commands() -> dict[str, click.Command]:
    """Return every command of `adaptive` by name, in the order of `adaptive --help`."""
    from adaptive_lm.serve.cli import group

    with click.Context(group, info_name="adaptive") as context:
        by_name = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in by_name.items() if command is not None}


def commands_page() -> str:
    """Write the help, the arguments, the options and the example of every command as Markdown."""
    lines: list[str] = []
    for name, command in commands().items():
        with click.Context(command, info_name=f"adaptive {name}", max_content_width=100) as context:
            usage = command.get_usage(context).removeprefix("Usage: ")
            lines += [f"## adaptive {name} {{ #{name} }}", "", "```text", usage, "```", ""]
            lines += [help_as_markdown(command.help or ""), ""]
            if command.epilog:
                lines += [help_as_markdown(command.epilog), ""]
            lines += ["**Options**", ""]
            for parameter in command.get_params(context):
                record = parameter.get_help_record(context)
                if record is not None and record[1]:
                    lines += [f"`{record[0]}`", f":   {escaped(' '.join(record[1].split()))}", ""]
    return "\n".join(lines)


def help_as_markdown(text: str) -> str:
    r"""Turn click's help text into Markdown.

    The example and the indented lines of a `\b` paragraph become code blocks.
    """
    paragraphs = []
    for paragraph in inspect.cleandoc(text.partition("\f")[0]).split("\n\n"):
        keeps_lines = paragraph.startswith("\b")
        words = paragraph.lstrip("\b").strip("\n")
        if words.startswith("Example: "):
            paragraphs.append(f"Example:\n\n```sh\n{words.removeprefix('Example: ')}\n```")
        elif keeps_lines:
            for is_code, lines in itertools.groupby(words.splitlines(), lambda line: line.startswith("  ")):
                block = "\n".join(lines)
                paragraphs.append(f"```sh\n{textwrap.dedent(block)}\n```" if is_code else escaped(block))
        else:
            paragraphs.append(escaped(words))
    return "\n\n".join(paragraphs)


def escaped(text: str) -> str:
    """Escape what Markdown and HTML would read as markup, outside of code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts
    )


def python_page() -> str:
    """Write one mkdocstrings directive for each public name of `adaptive_lm.runtime`."""
    import adaptive_lm.runtime as runtime

    names = sorted(runtime.__all__, key=lambda name: (name != "load", name != "Engine", name))
    return "\n\n".join(f"::: adaptive_lm.runtime.{name}" for name in names)


PAGES: dict[str, Callable[[], str]] = {
    "config": lambda: models_page(config_sections()),
    "manifest": lambda: models_page(manifest_sections()),
    "commands": commands_page,
    "python": python_page,
}
"""NAME in `<!-- generated: NAME -->` -> the function that writes what replaces it."""
