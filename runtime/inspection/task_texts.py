"""The held-out texts of the tasks that a run was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import TASKS
from ..generation.engine import Engine
from ..measuring.quality.perplexity import Text


@dataclass(frozen=True)
class TaskText:
    """The held-out text of one task; a text without a task has no name."""

    name: str
    text: Text
    lead: int | None = None
    """Id of the token that asks for the task."""

    def cut(self, tokens: int) -> "TaskText":
        """Return the first `tokens` tokens."""
        spans = self.text.spans[:tokens]
        return TaskText(
            self.name, Text(self.text.text[: spans[-1][1] if spans else 0], self.text.ids[:tokens], spans), self.lead
        )


def read_task_texts(engine: Engine, run: Path) -> list[TaskText]:
    """Read the held-out text of each task from the folder `run`; none if the run has no tasks.

    Raises:
        UserError: the file is damaged, or a text has no tokens.
    """
    path = run / TASKS
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_bytes())
        entries = [(str(one["name"]), one["token"], str(one["heldout"])) for one in content["tasks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), expected the tasks that training wrote; give a text with: --data FILE"
        ) from error
    texts = []
    for name, token, heldout in entries:
        ids, spans = engine.tokenizer.encode_with_spans(heldout)
        if not ids:
            raise UserError(f"{path} has no text of the task {name}, expected some; give a text with: --data FILE")
        lead = None if token is None else engine.tokenizer.id_of(token)
        texts.append(TaskText(name, Text(heldout, ids, spans), lead))
    return texts


def joined_text(parts: list[TaskText]) -> Text:
    """Join texts, with the places of their tokens in the whole."""
    text, ids, spans = "", list[int](), list[tuple[int, int]]()
    for part in parts:
        spans += [(start + len(text), end + len(text)) for start, end in part.text.spans]
        ids += part.text.ids
        text += part.text.text
    return Text(text, ids, spans)
