"""Open the models of a server."""

from collections.abc import Callable
from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import MANIFEST
from ...runtime.chat.renderer import RENDERER
from ...runtime.format.locate import find_model
from ...runtime.format.manifest import Manifest
from ...runtime.generation.engine import load
from ...runtime.generation.loop import Loop
from ...runtime.generation.text.tokenizer import Tokenizer
from ..control.controller import Controller, Objective, points_of
from ..observe.observer import Observer
from ..settings import Settings
from .job import ModelInfo
from .local import LocalScheduler
from .memory import fit, share_of_memory
from .worker import Opened, Worker


def open_scheduler(settings: Settings, observer: Observer | None = None) -> LocalScheduler:
    """Find the models and read what they say of themselves; `start` opens them.

    Args:
        settings: Those of the server.
        observer: Hears of jobs and passes.

    Raises:
        UserError: A model is missing, two have one name, or `auto_compute` is set and none is calibrated.
    """
    folders = [find_model(name) for name in settings.models or (None,)]
    infos = [model_info(folder) for folder in folders]
    names = [info.name for info in infos]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"found two models named {twice!r}, expected a name for each; a model is named as the folder of its run: "
            "rename one"
        )
    if settings.auto_compute is not None and all(info.manifest.curve is None for info in infos):
        raise UserError(
            f"found --auto-compute {settings.auto_compute:g}, but no model is calibrated, so none has a dial; type: "
            f"adaptive calibrate --model {folders[0]}"
        )
    budget = share_of_memory(settings.kv_memory, len(folders))
    workers = [
        Worker(info, opener(folder, settings, budget), controller_of(info, settings), settings.max_queue, observer)
        for info, folder in zip(infos, folders, strict=True)
    ]
    return LocalScheduler(workers, settings)


def model_info(folder: Path) -> ModelInfo:
    """Read the description of the exported model in `folder`."""
    manifest = Manifest.read(folder, verify=False)
    if manifest.chat_template is not None:
        RENDERER.prepare()
    return ModelInfo(
        name=name_of(folder),
        created=int((folder / MANIFEST).stat().st_mtime),
        manifest=manifest,
        tokenizer=Tokenizer.of_model(folder, manifest),
        dials=() if manifest.curve is None else tuple(point.compute for point in manifest.curve.points),
    )


def name_of(folder: Path) -> str:
    """Return the name of a model: that of its run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def opener(folder: Path, settings: Settings, budget: int) -> Callable[[], Opened]:
    """Return a function that opens a model and makes room for its texts."""

    def open_model() -> Opened:
        engine = load(folder, device=settings.device, target=settings.target, threads=settings.threads)
        graph = engine.session.graph
        room = fit(engine.manifest.model, graph.kv, budget, settings.max_batch)
        return Opened(engine, Loop(engine.session.batch(room.slots, room.capacity)), room)

    return open_model


def controller_of(info: ModelInfo, settings: Settings) -> Controller | None:
    """Return the controller of a model's dial; None where it is not calibrated."""
    curve = info.manifest.curve
    if curve is None:
        return None
    return Controller(points_of(curve), Objective(milliseconds=settings.target_ms_per_token))
