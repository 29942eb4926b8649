"""The arguments and options of `adaptive train`, and the config sections that they set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Request:
    """The arguments and options of `adaptive train`, as they were typed."""

    def __init__(
        self,
        *,
        recipe: str | None,
        stage: str | None,
        origin: str | None,
        checkpoint: str | None,
        lora: str | None,
        name: str | None,
        stop_at: int | None,
        resume: bool,
        override_resume: bool,
        overwrite: bool,
        begin_or_resume: bool,
        settings: tuple[str, ...],
        print_config: bool,
        **flags: Any,
    ) -> None:
        self.recipe, self.stage, self.name, self.stop_at = recipe, stage, name, stop_at
        self.origin, self.checkpoint, self.lora = origin, checkpoint, lora
        self.resume, self.override_resume, self.overwrite = resume, override_resume, overwrite
        self.begin_or_resume, self.print_config = begin_or_resume, print_config
        self.settings, self.flags = settings, flags

    def require_one_mode(self) -> None:
        """Raise UsageError if the options ask for more than one thing at a time."""
        if self.resume + self.overwrite + self.begin_or_resume > 1:
            raise click.UsageError(
                "--resume continues a run, --overwrite replaces it, --begin-or-resume does either as needed; give one"
            )
        if self.begin_or_resume and (self.name is None or self.stage is not None):
            raise click.UsageError("--begin-or-resume needs the run's --name, and no --stage")
        if self.override_resume and not self.resume:
            raise click.UsageError("--override-resume changes settings when a run is resumed; give --resume with it")
        if self.stage is not None and (self.recipe is None or self.resume):
            raise click.UsageError("--stage begins stages of a RECIPE; resume a stage with --resume --name NAME-stageN")
        if self.checkpoint is not None and self.origin is None:
            raise click.UsageError("--checkpoint names a checkpoint of another run; give that run with --from RUN")
        if self.lora is not None and self.origin is None:
            raise click.UsageError("--lora adapts the model of another run; give that run with --from RUN")
        if self.origin is not None and (self.resume or self.stage is not None):
            raise click.UsageError(
                "--from begins a run with the weights of another one; leave out --stage and --resume, by which a run "
                "goes on from its own"
            )
        if self.stage == "all" and (self.stop_at or self.print_config):
            raise click.UsageError("--stop-at and --print-config need one stage: give --stage baseline, 1, 2, 3 or 4")

    def overrides(self) -> list[dict[str, Any]]:
        """Return the flags and the settings, in the order in which they override each other."""
        from ..config.run_config import parse_setting

        return [flag_values(**self.flags), *(parse_setting(setting) for setting in self.settings)]

    def stem(self, recipe: str | None) -> str:
        """Return the default name of a run without its number: that of its recipe, or else of its text."""
        source = self.flags["sources"][0] if recipe is None else recipe
        return recipe or Path(source.rpartition("@")[0] or source).stem.rpartition(":")[2]


def flag_values(
    *,
    sources: tuple[str, ...],
    val: str | None,
    data_dir: str | None,
    text_field: str | None,
    tokenizer: str | None,
    vocab_size: int | None,
    steps: int | None,
    max_seconds: float | None,
    seed: int | None,
    teacher: str | None,
    device: str | None,
    compile_blocks: bool | None,
    checkpoint_activations: bool | None,
) -> dict[str, Any]:
    """Return the flags that were given, as sections of the config."""
    sections: dict[str, dict[str, Any]] = {
        "distillation": {"teacher": None if teacher is None else {"model": teacher}},
        "data": {"sources": list(sources) or None, "val": val, "dir": data_dir, "text_field": text_field},
        "tokenizer": {"kind": tokenizer, "vocab_size": vocab_size},
        "trainer": {
            "steps": steps,
            "max_seconds": max_seconds,
            "seed": seed,
            "device": device,
            "compile": compile_blocks,
            "checkpoint_activations": checkpoint_activations,
        },
    }
    given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
    return {name: values for name, values in given.items() if values}
