"""The teacher that a config names: a run, an exported model whose run is here, or a model of another program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from ...contract.errors import UserError
from ...contract.file_names import CONFIG, MANIFEST, PROVENANCE, TOKENIZER
from ...contract.files import user_path
from ..config.distillation import TeacherConfig
from ..data.tokenizers.given_tokenizer import GivenTokenizer
from ..data.tokenizers.tokenizer_json import open_tokenizer
from ..importing.importer import read_foreign
from ..importing.run_writer import checkpoint_state
from ..importing.source import Work
from ..model.config.model import ModelConfig
from ..run.checkpoints.adapted import BASE_DIGEST
from ..run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from ..run.checkpoints.names import list_checkpoints, step_of
from ..run.checkpoints.tensor_file import LazyTensor
from ..run.files import read_run_file
from ..run.find import find
from ..run.folder import RUNS, Run
from ..run.origin import digest_of_weights, given_tokenizer
from ..system.cache_folder import digest_of


@dataclass(frozen=True)
class TeacherSource:
    """A teacher on the disk: what it is, and how its weights are read."""

    name: str
    """Where its weights are, for messages."""
    checkpoint: str
    """Step of a run; `last` of any other model."""
    sha256: str
    """Digest of the weights."""
    model: ModelConfig
    tokenizer: Tokenizer
    end: int
    """Token id that ends a text."""
    tokenizer_file: Path | None
    """Its tokenizer.json; None where the model has it in another form."""
    run: Path | None
    """The folder of its run, if it is a run."""
    state: Callable[[], Mapping[str, Tensor | LazyTensor]]
    """Returns all its weights and buffers by name."""
    provenance: Mapping[str, Any]
    """Source, licence and digests of the files of a model of another program; empty for one that was trained here."""

    @property
    def resolved(self) -> TeacherConfig:
        """The section of the config that names exactly these weights."""
        name = str(self.run) if self.run is not None else self.name
        if self.run is not None and self.run.parent == RUNS:
            name = self.run.name
        return TeacherConfig(model=name, checkpoint=self.checkpoint, sha256=self.sha256)


def read_teacher(config: TeacherConfig, work: Work = lambda what, done, total: None) -> TeacherSource:
    """Find and verify the teacher; its weights stay on the disk.

    Raises:
        UserError: There is no such model, it is damaged or cannot be computed here, or its weights are not those that
            were named.
    """
    path = folder_of(config.model)
    if (path / MANIFEST).is_file():
        source = _of_run(*_run_behind(path))
    elif path.is_file() or (not (path / CONFIG).is_file() and (path / "config.json").is_file()):
        source = _foreign(path, config, work)
    else:
        source = _of_run(config.model, config.checkpoint)
    if config.sha256 is not None and config.sha256 != source.sha256:
        raise UserError(
            f"the weights of the teacher {source.name} have the digest {source.sha256[:12]}, expected "
            f"{config.sha256[:12]}: it has changed since; restore it, or begin a new run with it as it is now: "
            f"--teacher {config.model}"
        )
    return source


def folder_of(name: str) -> Path:
    """Return the run of that name, or else the file or folder that a user typed."""
    run = RUNS / name
    return run if Path(name).name == name and (run / CONFIG).is_file() else user_path(name)


def _of_run(name: str, which: str) -> TeacherSource:
    checkpoint = load_checkpoint(find(name, which))
    given: GivenTokenizer = given_tokenizer(checkpoint.run)
    return TeacherSource(
        name=str(checkpoint.path),
        checkpoint=str(checkpoint.step),
        sha256=_digest(checkpoint),
        model=checkpoint.config.model,
        tokenizer=given.load(),
        end=given.end,
        tokenizer_file=checkpoint.run / TOKENIZER,
        run=checkpoint.run,
        state=lambda: checkpoint.model_state,
        provenance=_provenance(checkpoint.run),
    )


def _provenance(run: Path) -> Mapping[str, Any]:
    return json.loads(read_run_file(run / PROVENANCE)) if (run / PROVENANCE).exists() else {}


def note_teacher(source: TeacherSource, run: Run) -> None:
    """Write the teacher into the provenance of a run, beside that of the weights that it goes on from.

    Raises:
        UserError: The file cannot be written.
    """
    taught_by = {**source.resolved.model_dump(mode="json"), **source.provenance}
    content = {**_provenance(run.path), "taught_by": taught_by}
    run.write(PROVENANCE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _digest(checkpoint: Checkpoint) -> str:
    """Return the digest of all weights: of a run with adapters, of those and of the frozen ones."""
    own = digest_of_weights(checkpoint)
    if checkpoint.config.lora is None:
        return own
    return digest_of([own, json.loads((checkpoint.run / BASE_DIGEST).read_bytes())["sha256"]])


def _foreign(path: Path, config: TeacherConfig, work: Work) -> TeacherSource:
    if config.checkpoint != "last":
        raise UserError(
            f"distillation.teacher.checkpoint is {config.checkpoint}, but {path} is not a run and has no checkpoints; "
            "leave it out"
        )
    foreign = read_foreign(path, work)
    return TeacherSource(
        name=str(path),
        checkpoint="last",
        sha256=digest_of(dict(foreign.provenance.files)),
        model=foreign.config,
        tokenizer=open_tokenizer(foreign.tokenizer, str(path)),
        end=foreign.generation.eos_ids[0],
        tokenizer_file=path / TOKENIZER if (path / TOKENIZER).is_file() else None,
        run=None,
        state=lambda: checkpoint_state(foreign)[0],
        provenance=asdict(foreign.provenance),
    )


def _run_behind(folder: Path) -> tuple[str, str]:
    """Return the run and the step that an exported model was made from.

    The run is the better teacher: its weights are not quantised, and torch computes whole batches of them.

    Raises:
        UserError: The manifest cannot be read, or that checkpoint is not here.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        name, step = str(manifest["created_by"]["run"]), str(int(manifest["created_by"]["step"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MANIFEST} does not say which run the model was exported from ({error}); name the run, the "
            "GGUF file or the Hugging Face folder in its place"
        ) from error
    own = folder.absolute().parent
    for run in (own, RUNS / name):
        steps = [str(step_of(path)) for path in list_checkpoints(run / "checkpoints")]
        if step in steps and (run == own or same_tokenizer(run, folder)):
            return str(run), step
    raise UserError(
        f"{folder} was exported from step {step} of the run {name}, which is not here; expected "
        f"{RUNS / name / 'checkpoints'} with that step. Training needs the weights in torch: bring the run here, or "
        "name another checkpoint of it (--teacher RUN), a GGUF file or a Hugging Face folder"
    )


def same_tokenizer(run: Path, exported: Path) -> bool:
    """Return whether a run has the tokenizer of an exported model, so that a run of the same name is not taken."""
    try:
        return (run / TOKENIZER).read_bytes() == (exported / TOKENIZER).read_bytes()
    except OSError:
        return False


def refuse_itself(run: Run, source: TeacherSource) -> None:
    """Refuse to replace the run that teaches.

    Raises:
        UserError: Both are the same folder.
    """
    if source.run is not None and source.run.resolve() == run.path.resolve():
        raise UserError(f"{run.path} is the teacher, and would be deleted; give the new run another --name")
