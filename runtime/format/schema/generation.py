"""The section `generation`: how texts are written for the model and drawn from it."""

from typing import Self

from pydantic import Field, model_validator

from ....contract.generation_settings import Dialect, GenerationSettings, Role, ToolFormat, template_file
from .part import Count, Part


class Generation(Part):
    """How texts are written for the model and drawn from it; the defaults describe a model that was trained here."""

    dialect: Dialect = "own"
    """The environment that the chat templates were written for."""
    bos_id: Count | None = None
    """Token id that begins a text; None where the model has none."""
    add_bos: bool = False
    """Whether a prompt without a template begins with `bos_id`."""
    special_tokens: dict[Role, str] = Field(default_factory=dict)
    """Texts of the special tokens by role, as the templates spell them."""
    sampling: dict[str, int | float] = Field(default_factory=dict)
    """Defaults of sampling; a setting that is left out has the program's default."""
    stop: list[str] = Field(default_factory=list)
    """Texts before which a text ends."""
    tools: ToolFormat | None = None
    """How the model writes tool calls; None: recognised from its template."""
    templates: dict[str, str] = Field(default_factory=dict)
    """Chat templates besides the main one, by name."""

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        GenerationSettings(
            eos_ids=(0,),
            bos_id=self.bos_id,
            add_bos=self.add_bos,
            dialect=self.dialect,
            special_tokens=self.special_tokens,
            sampling=self.sampling,
            templates={name: template_file(name) for name in self.templates},
            stop=tuple(self.stop),
            tools=self.tools,
        )
        return self
