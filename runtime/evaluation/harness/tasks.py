"""Load the tasks of the harness once, and run them on a model at points of its dial."""

import difflib
import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lm_eval
import numpy as np
from lm_eval.tasks import TaskManager

from ....contract.errors import UserError
from ...dial import Dial
from ...generation.engine import Engine
from ...terminal.progress import Progress
from ..params import TaskParams, name_of
from .model import HarnessModel

Json = dict[str, Any]

BOOTSTRAPS = 1000
"""Samples from which the harness estimates the standard error of a metric that has no formula."""
PYTHON_SEED, OTHER_SEED = 0, 1234
"""The harness's own seeds: of `random`, which some tasks shuffle with, and of numpy and the choice of examples."""


class Tasks:
    """Tasks that are loaded, with their data.

    Args:
        params: Which tasks, and how much of them.

    Raises:
        UserError: There is no such task, or its data cannot be had.
    """

    def __init__(self, params: TaskParams) -> None:
        self._params = params
        with quiet():
            manager = task_manager(params)
            loaded = [task for name in params.tasks for task in load_task(manager, name)]
            try:
                self._loaded = manager.load(loaded)
            except ValueError as error:
                raise UserError(f"found a task twice: {first_line(error)}; give each once") from error
            for task in self._loaded["tasks"].values():
                set_examples(task, params.num_fewshot)

    def check(self, engine: Engine) -> None:
        """Raise UserError if the model cannot run the tasks, before anything is computed."""
        model = HarnessModel(engine, Dial())
        if self._params.apply_chat_template:
            model.apply_chat_template([{"role": "user", "content": "?"}])
        for task in self._loaded["tasks"].values():
            if task.get_config("output_type") == "generate_until":
                model.params(task.get_config("generation_kwargs") or {})

    def run(self, engine: Engine, dial: Dial, progress: Progress) -> tuple[Json, Json]:
        """Run the tasks at a point of the dial.

        Returns:
            For each task and group its metrics, such as `acc,none` and `acc_stderr,none`; and what the harness says
            about the run.

        Raises:
            UserError: A task needs what this program cannot do.
        """
        done = 0

        def watch(count: int) -> None:
            nonlocal done
            done += count
            progress.show(f"{name_of(dial)}: {done} requests of {', '.join(self._params.tasks)}")

        model = HarnessModel(engine, dial, watch)
        params = self._params
        random.seed(PYTHON_SEED)
        np.random.seed(OTHER_SEED)
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(OTHER_SEED)  # so that every point has the same examples
        with quiet():
            try:
                content = lm_eval.evaluate(
                    model, self._loaded, limit=params.limit, bootstrap_iters=BOOTSTRAPS, log_samples=False,
                    system_instruction=params.system_instruction, apply_chat_template=params.apply_chat_template,
                    fewshot_as_multiturn=True,
                )  # fmt: skip
            except ValueError as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"the harness refused the tasks: {first_line(error)}; choose other tasks") from error
        about = {
            "version": lm_eval.__version__, "limit": params.limit, "apply_chat_template": params.apply_chat_template,
            "system_instruction": params.system_instruction, "versions": content["versions"],
            "num_fewshot": content["n-shot"], "samples": content["n-samples"], "groups": content["group_subtasks"],
            "truncated": model.truncated,
        }  # fmt: skip
        return plain(content["results"]), plain(about)


def task_manager(params: TaskParams) -> TaskManager:
    """Return the index of the tasks; the harness's own thousands are left out where the folder has all that are named.

    Raises:
        UserError: There is no such folder.
    """
    folder = params.include_path
    if folder is None:
        return TaskManager()
    if not folder.is_dir():
        raise UserError(f"found no folder {folder}, expected one with .yaml files of tasks; check --include-path")
    own = TaskManager(include_path=str(folder), include_defaults=False)
    return own if set(params.tasks) <= set(own.all_tasks) else TaskManager(include_path=str(folder))


def load_task(manager: TaskManager, name: str) -> list[Any]:
    """Load a task, a group or the tasks of a tag by its name, with their data.

    Raises:
        UserError: There is none, or it cannot be loaded: its data is not on this machine and the hub cannot be reached.
    """
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "list them with: lm-eval ls tasks"
        raise UserError(
            f"found no task {name!r} among the {len(manager.all_tasks)} of the harness and of --include-path; {hint}"
        )
    try:
        tasks = manager.load([name])
    except Exception as error:  # of the task, of `datasets`, of the network: no common base
        raise UserError(
            f"task {name} cannot be loaded: {type(error).__name__}: {first_line(error)}; connect to the hub once, so "
            "that its data is stored on this machine, or give tasks with local files: --include-path FOLDER"
        ) from error
    return [tasks["groups"][name]] if name in tasks["groups"] else list(tasks["tasks"].values())


def set_examples(task: Any, count: int | None) -> None:
    """Set the number of examples in the prompt, by the rule of the harness: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (count is not None and own != 0):
        task.set_config(key="num_fewshot", value=count or 0)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def plain(value: Any) -> Any:
    """Return a value of JSON: numbers of numpy become those of Python, and what is not a number null."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def quiet() -> Iterator[None]:
    """Let only errors of the harness and of `datasets` be printed."""
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, bars = [one.level for one in loggers], is_progress_bar_enabled()
    disable_progress_bars()
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if bars:
            enable_progress_bars()
