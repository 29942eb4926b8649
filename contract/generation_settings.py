"""The file `generation.json` of a run: ends of texts, special tokens, chat templates and defaults of sampling.

A run that was trained here has no such file: its texts end with `<|endoftext|>` and its template is one of ours. An
import writes it; an export copies it into the manifest.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

from .errors import UserError

Dialect = Literal["own", "huggingface"]
"""Which environment a chat template was written for: our strict one, or that of `apply_chat_template`."""
Role = Literal["bos", "eos", "pad", "unk"]
ToolFormat = Literal["hermes", "mistral", "pythonic", "llama3_json"]
"""How a model writes tool calls into its text."""
DEFAULT_TEMPLATE: Final = "default"
"""Name of the template in `chat_template.jinja`."""
MAX_ENDS: Final = 64
MAX_STOPS: Final = 64
MAX_TEMPLATES: Final = 32
MAX_TEXT: Final = 1024
"""Characters of a special token or of a stop string."""
SAMPLING: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 1e6),
    "top_k": (1, 2**31),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}
"""Settings of sampling that a model may bring, and their ranges."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Where texts of a model end, its special tokens, its templates, and its defaults of sampling."""

    eos_ids: tuple[int, ...]
    """Token ids that end a text, at least one; the first is the main one."""
    bos_id: int | None = None
    """Token id that begins a text; None where the model has none."""
    add_bos: bool = False
    """Whether a prompt without a template begins with `bos_id`."""
    dialect: Dialect = "own"
    special_tokens: Mapping[Role, str] = field(default_factory=dict)
    """Texts of the special tokens by role, as templates spell them; a role that the model lacks is left out."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Defaults of sampling by the names of `SAMPLING`; a setting that is left out has the program's default."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Further chat templates: name -> file in the run's folder, by `template_file`."""
    stop: tuple[str, ...] = ()
    """Texts before which a text ends."""
    tools: ToolFormat | None = None
    """How the model writes tool calls; None: recognised from its template."""

    def __post_init__(self) -> None:
        if not self.eos_ids or len(self.eos_ids) > MAX_ENDS or len(set(self.eos_ids)) < len(self.eos_ids):
            raise _refused("eos_ids", list(self.eos_ids), f"1 to {MAX_ENDS} different token ids")
        for name, numbers in (("eos_ids", self.eos_ids), ("bos_id", (self.bos_id,))):
            for number in numbers:
                if number is not None and (type(number) is not int or not 0 <= number < 2**31):
                    raise _refused(name, number, "a token id, at least 0")
        if type(self.add_bos) is not bool:
            raise _refused("add_bos", self.add_bos, "true or false")
        if self.add_bos and self.bos_id is None:
            raise _refused("add_bos", True, "false where bos_id is null")
        if self.dialect not in get_args(Dialect):
            raise _refused("dialect", self.dialect, " or ".join(get_args(Dialect)))
        for role, text in self.special_tokens.items():
            if role not in get_args(Role):
                raise _refused("special_tokens", role, "the roles " + ", ".join(get_args(Role)))
            _check_text(f"special_tokens.{role}", text)
        for name, value in self.sampling.items():
            _check_sampling(name, value)
        if len(self.templates) > MAX_TEMPLATES:
            raise _refused("templates", len(self.templates), f"at most {MAX_TEMPLATES}")
        for name, file in self.templates.items():
            if file != template_file(name):
                raise _refused(f"templates.{name}", file, template_file(name))
        if len(self.stop) > MAX_STOPS:
            raise _refused("stop", len(self.stop), f"at most {MAX_STOPS} texts")
        for text in self.stop:
            _check_text("stop", text)
        if self.tools is not None and self.tools not in get_args(ToolFormat):
            raise _refused("tools", self.tools, " or ".join(get_args(ToolFormat)) + ", or null")

    def to_json(self) -> str:
        """Write the file."""
        content = {
            "eos_ids": list(self.eos_ids),
            "bos_id": self.bos_id,
            "add_bos": self.add_bos,
            "dialect": self.dialect,
            "special_tokens": dict(self.special_tokens),
            "sampling": dict(self.sampling),
            "templates": dict(self.templates),
            "stop": list(self.stop),
            "tools": self.tools,
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Read the file; `name` is what messages call it.

        Raises:
            UserError: It is not JSON, or a field is missing, unknown or outside its range.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is damaged: {error}; restore it, or import the model again") from error
        try:
            if not isinstance(content, dict):
                raise _refused("the file", content, "a JSON object")
            kinds: dict[str, type] = {
                "eos_ids": list, "special_tokens": dict, "sampling": dict, "templates": dict, "stop": list,
            }  # fmt: skip
            for key, value in content.items():
                if key not in cls.__dataclass_fields__:
                    raise _refused("the field", key, "one of " + ", ".join(cls.__dataclass_fields__))
                if key in kinds and not isinstance(value, kinds[key]):
                    raise _refused(key, value, "a list" if kinds[key] is list else "an object")
            if "eos_ids" not in content:
                raise UserError("found no eos_ids, expected a list of token ids")
            for key in ("eos_ids", "stop"):
                if any(isinstance(one, list | dict) for one in content.get(key, [])):
                    raise _refused(key, content[key], "a plain list")
                if key in content:
                    content[key] = tuple(content[key])
            return cls(**content)
        except UserError as error:
            raise UserError(f"{name}: {error}; correct it, or import the model again") from None


def template_file(name: str) -> str:
    """Return the file of a named chat template in the folder of a run.

    Raises:
        UserError: The name cannot be that of a file, or is that of the main template.
    """
    if not _NAME.fullmatch(name) or name == DEFAULT_TEMPLATE:
        raise _refused(
            "the name of a chat template", name, f"up to 64 letters, digits, - and _, other than {DEFAULT_TEMPLATE}"
        )
    return f"chat_template.{name}.jinja"


def sampling_of(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Return the defaults of sampling that a `generation_config.json` of transformers names.

    A setting that has no effect (`top_k` 0, `top_p` 1) or is outside its range is left out. `do_sample: false` is
    temperature 0.
    """
    if generation_config.get("do_sample") is False:
        return {"temperature": 0.0}
    neutral = {"top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    sampling = {}
    for name in SAMPLING:
        value = generation_config.get(name)
        if value is None or value == neutral.get(name):
            continue
        try:
            _check_sampling(name, value)
        except UserError:
            continue
        sampling[name] = value
    return sampling


def _check_sampling(name: str, value: Any) -> None:
    if name not in SAMPLING:
        raise _refused("sampling", name, "the settings " + ", ".join(SAMPLING))
    least, most = SAMPLING[name]
    number = type(value) is int or (type(value) is float and math.isfinite(value) and name != "top_k")
    if not number or not least <= value <= most or (name == "top_p" and value == 0):
        kind = "a whole number" if name == "top_k" else "a number"
        raise _refused(f"sampling.{name}", value, f"{kind} from {least:g} to {most:g}")


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT:
        raise _refused(name, text, f"a text of 1 to {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(name, text, "text that UTF-8 can hold") from None


def _refused(name: str, value: Any, expected: str) -> UserError:
    shown = repr(value)
    return UserError(f"found {shown if len(shown) <= 80 else shown[:77] + '...'} as {name}, expected {expected}")
