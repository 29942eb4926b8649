"""Generates text: prompt in, tokens out, each with its text, what it used and how long it took."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import TOKENIZER
from ...contract.messages import Message
from ..dial.dial import Dial, resolve
from ..execution.cost import Meter, Usage
from ..execution.routes import Routes, at
from ..execution.session import Session
from ..format.manifest import Manifest
from .chat import prompt_turns
from .sampler import Sampler, Sampling
from .stop import StopWatch, checked_stops
from .tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Params(Sampling, Dial):
    """All that a person can ask of one generation; see `Sampling` and `Dial` for their part.

    max_new_tokens: at most this many; None takes 128, or fewer where the context ends.
    stop: the text ends before the first of these.
    """

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        Dial.__post_init__(self)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise WrongUsageError(f"found max_new_tokens {self.max_new_tokens}, expected at least 1")
        checked_stops(self.stop)


@dataclass(frozen=True)
class Token:
    """One new token.

    text: what became certain with it, in whole characters; may be "" or hold what earlier tokens began.
    seconds: of the pass that it was chosen from and of the choice, measured; for the first token, of the whole prompt.
    routes: of the last token of that pass.
    """

    id: int
    text: str
    seconds: float
    routes: Routes
    meter: Meter

    @cached_property
    def usage(self) -> Usage:
        """Of the pass that it was chosen from; computed when asked for, so that who does not look does not wait."""
        return self.meter.usage(self.routes)


class Generation(Iterator[Token]):
    """The tokens of one generation, computed as they are asked for.

    finish_reason: None while it runs, then "eos", "stop" or "length".
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, prompt: list[int], params: Params) -> None:
        model = session.manifest.model
        wrong = next((token for token in prompt if not 0 <= token < model.tokenizer_size), None)
        if wrong is not None:
            raise UserError(f"found token {wrong} in the prompt, this model has 0 to {model.tokenizer_size - 1}")
        self.params = params
        self.prompt_tokens = len(prompt)
        self.max_new_tokens = _fitting(len(prompt), params.max_new_tokens, model.context_length)
        self.thresholds = resolve(session.manifest, params)
        self.finish_reason: str | None = None
        self._session = session
        self._tokenizer = tokenizer
        self._prompt: list[int] | None = prompt  # None once it was computed
        self._sampler = Sampler(params, model.tokenizer_size, prompt)
        self._stream = tokenizer.stream(prompt)
        self._watch = StopWatch(params.stop)
        self._last = 0
        self._made = 0
        self._position = 0

    @property
    def seed(self) -> int:
        """The seed in use, drawn or given."""
        return self._sampler.seed

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        begin = time.perf_counter()
        if self._prompt is not None:
            self._session.reset(self.prompt_tokens + self.max_new_tokens)
            self._session.set_thresholds(self.thresholds)
            step = self._session.prefill(self._prompt)
            self._prompt = None
        else:
            if self._session.position != self._position:
                raise RuntimeError("another generation of this engine began; an engine runs one at a time")
            step = self._session.step(self._last)
        self._position = self._session.position
        token = self._last = self._sampler.choose(step.logits[-1])
        seconds = time.perf_counter() - begin
        self._made += 1
        return Token(token, self._text(token), seconds, at(step.routes, -1), step.meter)

    def _text(self, token: int) -> str:
        """What can be shown now; sets `finish_reason`."""
        ended = token == self._tokenizer.eos_id
        text = "" if ended else self._stream.push(token)
        if ended or self._made == self.max_new_tokens:
            self.finish_reason = "eos" if ended else "length"
            text = self._watch.push(text + self._stream.flush()) + self._watch.flush()
        else:
            text = self._watch.push(text)
        if self._watch.stopped:  # even by the very last characters
            self.finish_reason = "stop"
        return text


class Engine:
    """A model ready to generate. One generation at a time: a new one ends the one before."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.manifest = session.manifest

    def generate(self, prompt: str | Sequence[int], params: Params | None = None) -> Generation:
        """Iterate over the new tokens after `prompt`, a text or ids; nothing is computed before the first is asked for.

        Raises UserError for an empty prompt, for a prompt and new tokens beyond the context, and for a dial that this
        model does not have.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        return Generation(self.session, self.tokenizer, ids, params or Params())

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt that asks for the next answer, by the model's chat template.

        Raises UserError for a model without one.
        """
        if self.manifest.chat_template is None:
            raise UserError("this model has no chat template: it was not trained on conversations; use --raw")
        ids: list[int] = []
        for turn in prompt_turns(self.manifest.chat_template, messages):
            ids += self.tokenizer.encode(turn.text) + [self.manifest.model.eos_id] * turn.eos
        return ids


def _fitting(prompt: int, wanted: int | None, context: int) -> int:
    if prompt == 0:
        raise UserError("the prompt is empty, expected at least one token; type a text to continue")
    new = wanted if wanted is not None else min(DEFAULT_NEW_TOKENS, max(context - prompt, 1))
    if prompt + new > context:
        raise UserError(
            f"found {prompt} prompt tokens and {new} new ones, {prompt + new} together; "
            f"this model's context is {context} tokens; shorten the prompt or lower --max-new-tokens"
        )
    return new


def load(
    folder: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None, verify: bool = True
) -> Engine:
    """Open the exported model in `folder`.

    device: "auto" (CUDA when it really loads), "cpu", "cuda"; threads: None takes one per core, for a small
    model one; verify: check digests.
    Raises UserError for a model that is missing, damaged, of another version, or whose parts do not belong together.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder, verify=verify)
    model = manifest.model
    tokenizer = Tokenizer(folder / TOKENIZER, size=model.tokenizer_size, eos_id=model.eos_id)
    # Little room at first: each generation makes the room that it needs.
    room = min(64, model.context_length)
    return Engine(Session(folder, manifest, device=device, threads=threads, capacity=room), tokenizer)
