"""Child process that renders chat templates; `renderer.py` ends it where one takes too long.

A template comes with a model and is not trusted. Here it can change and reach nothing by the rules of jinja2's sandbox;
should it get past them, the process can open no file, start no program and take little memory.

It is run as a file of its own, so it imports nothing of this package; its arguments are the folders of jinja2 and
markupsafe. Each line of stdin is a JSON object with `template`, `dialect` and `variables`; the answer is a line with
`text`, or `error`.
"""

import contextlib
import encodings.unicode_escape
import json
import pprint
import signal
import sys
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any

sys.path += sys.argv[1:]

import jinja2.constants
import jinja2.ext
from jinja2 import Environment, StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

IMPORTED = (encodings.unicode_escape, pprint, unicodedata, jinja2.constants)
"""Modules that would be imported late, when no file can be opened."""
MAX_SECONDS = 60
"""After which it ends by itself, if what should end it is gone."""
MAX_BYTES = 512 << 20
"""Memory of this process."""
MAX_LENGTH = 10_000_000
"""Characters of a rendered prompt."""
MAX_CACHED = 16
"""Templates that stay compiled."""


class RefusedError(TemplateError):
    """What a template calls with `raise_exception`."""


def refuse(message: Any) -> None:
    """Refuse the conversation: templates call it."""
    raise RefusedError(str(message))


def own() -> Environment:
    """Return the environment of templates that this program trains with: strict, as in training."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals["raise_exception"] = refuse
    return environment


def huggingface() -> Environment:
    """Return the environment of `apply_chat_template` in transformers, 5.24."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.globals["dict"] = PlainDict()
    environment.globals["namespace"] = PlainNamespace
    return environment


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON without the escapes of HTML that jinja2's own filter puts in."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks the answers for training: here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own type

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the content as a block with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @staticmethod
    def _content(caller: Callable[[], str]) -> str:
        return caller()


class PlainDict:
    """`dict` for templates, without the attributes of the type."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        """Make a dict."""
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dict of keys."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **fields: Any) -> None:  # type: ignore[misc]  # so that `namespace(self=...)` works
        own, *rest = args
        attributes = dict(*rest, **fields)
        for name in attributes:
            PlainNamespace._check(name)
        Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"the template stores {name!r} on a namespace, which must not begin with _")


class Renderer:
    """Renders templates, and keeps those used last compiled."""

    def __init__(self) -> None:
        self._environments = {"own": own(), "huggingface": huggingface()}
        self._compiled: dict[tuple[str, str], Template] = {}

    def render(self, template: str, dialect: str, variables: dict[str, Any]) -> str:
        """Return the text.

        Raises:
            ValueError: It is too long.
        """
        key = (template, dialect)
        compiled = self._compiled.pop(key, None) or self._environments[dialect].from_string(template)
        self._compiled[key] = compiled
        if len(self._compiled) > MAX_CACHED:
            del self._compiled[next(iter(self._compiled))]
        text = compiled.render(**variables)
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it made {len(text)} characters, at most {MAX_LENGTH}")
        return text


def answer(renderer: Renderer, request: dict[str, Any]) -> dict[str, str]:
    """Return the text, or why there is none."""
    try:
        return {"text": renderer.render(**request)}
    except RefusedError as error:
        return {"error": f"it refuses this conversation: {error.message}"}
    except MemoryError:
        return {"error": f"it takes more than {MAX_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # a template may fail in any way: undefined names, refused attributes, arithmetic
        line = getattr(error, "lineno", None)
        return {"error": (f"line {line}: " if line else "") + (str(error) or type(error).__name__)[:500]}


def confine() -> None:
    """Take from this process all that rendering does not need, where the system can."""
    datetime.now().astimezone()  # reads the time zone
    with contextlib.suppress(ImportError):
        import resource

        limits = {"RLIMIT_AS": MAX_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 3}
        for name, most in limits.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (most, most))


def main() -> None:
    """Answer until stdin ends."""
    renderer = Renderer()
    for template in ("{{ 1 }}", "{{ 1 / 0 }}", "{% if %}", "{{ ''.__class__.x }}"):  # imports what is imported late
        for dialect in ("own", "huggingface"):
            answer(renderer, {"template": template, "dialect": dialect, "variables": {}})
    confine()
    print(json.dumps("ready"), flush=True)
    alarm = getattr(signal, "alarm", int)  # Windows has none
    for line in sys.stdin:
        alarm(MAX_SECONDS)
        try:
            reply = json.dumps(answer(renderer, json.loads(line)))
        except MemoryError:
            reply = json.dumps({"error": "it takes too much memory"})
        print(reply, flush=True)
        alarm(0)


if __name__ == "__main__":
    main()
