"""Text generation: prompt in, tokens out, each with its text, usage and time."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import TOKENIZER
from ...contract.messages import Message
from ..dial.dial import Dial, resolve
from ..execution.cost import Meter, Usage
from ..execution.routes import Routes, at
from ..execution.session import Session
from ..format.files import check_digest
from ..format.manifest import Manifest
from .chat import prompt_turns
from .sampler import Sampler, Sampling, TokenChooser, check_whole
from .stop import StopWatch, checked_stops
from .tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Params(Sampling, Dial):
    """All that can be set for one generation; see `Sampling` and `Dial` for their part."""

    max_new_tokens: int | None = None
    """The most tokens to generate; None takes 128, or fewer where the context ends."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        Dial.__post_init__(self)
        if self.max_new_tokens is not None:
            check_whole("max_new_tokens", self.max_new_tokens, 1, None, "leave it out for as many as there is room for")
        checked_stops(self.stop)


@dataclass(frozen=True)
class Token:
    """One new token."""

    id: int
    text: str
    """Text that became certain with this token, in whole characters; "" or the end of a character begun earlier."""
    seconds: float
    """Measured time of the pass and of the choice of the token; for the first token, that of the whole prompt."""
    routes: Routes
    """Routes of the last token of that pass."""
    meter: Meter

    @cached_property
    def usage(self) -> Usage:
        """The compute of the pass that it was chosen from, computed when first read."""
        return self.meter.usage(self.routes)


class Generation(Iterator[Token]):
    """The tokens of one generation, each computed when it is requested."""

    finish_reason: str | None
    """None while it runs, then "eos", "stop" or "length"."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: Params,
        sampler: TokenChooser | None = None,
    ) -> None:
        model = session.manifest.model
        wrong = next((token for token in prompt if not 0 <= token < model.tokenizer_size), None)
        if wrong is not None:
            raise UserError(f"found token {wrong} in the prompt, this model has 0 to {model.tokenizer_size - 1}")
        self.params = params
        self.prompt_tokens = len(prompt)
        self.max_new_tokens = _fitting(len(prompt), params.max_new_tokens, model.context_length)
        self.thresholds = resolve(session.manifest, params)
        self.finish_reason = None
        self._session = session
        self._sampler = sampler or Sampler(params, model.tokenizer_size, prompt)
        self._text = VisibleText(tokenizer, prompt, params.stop)
        self._tokens = self._generate(prompt)

    @property
    def seed(self) -> int:
        """The seed in use, drawn or given."""
        return self._sampler.seed

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def _generate(self, prompt: list[int]) -> Iterator[Token]:
        """Run the prompt, then a pass for each token, until one ends the text."""
        begin = time.perf_counter()
        sequence = self._session.sequence(self.thresholds, len(prompt) + self.max_new_tokens)
        step = sequence.prefill(prompt)
        for left in reversed(range(self.max_new_tokens)):
            token = self._sampler.choose(step.logits[-1])
            seconds = time.perf_counter() - begin
            text, self.finish_reason = self._text.add(token, last=left == 0)
            yield Token(token, text, seconds, at(step.routes, -1), step.meter)
            if self.finish_reason is not None:
                return
            begin = time.perf_counter()
            step = sequence.step(token)


class VisibleText:
    """The text of a generation, held back where a character or a stop string is not complete."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...]) -> None:
        self._eos_id = tokenizer.eos_id
        self._stream = tokenizer.stream(prompt)
        self._watch = StopWatch(stop)

    def add(self, token: int, *, last: bool) -> tuple[str, str | None]:
        """Return the text that can be shown after `token`, and the reason why it ends there: None if it continues."""
        reason = "eos" if token == self._eos_id else "length" if last else None
        text = "" if reason == "eos" else self._stream.push(token)
        if reason is None:
            text = self._watch.push(text)
        else:
            text = self._watch.push(text + self._stream.flush()) + self._watch.flush()
        return text, "stop" if self._watch.stopped else reason


class Engine:
    """A model ready to generate. One generation at a time: a new one ends the one before."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.manifest = session.manifest

    def generate(
        self, prompt: str | Sequence[int], params: Params | None = None, *, sampler: TokenChooser | None = None
    ) -> Generation:
        """Iterate over the new tokens after `prompt`; nothing is computed before the first is requested.

        Args:
            prompt: A text, or ids.
            params: Settings of the generation; None takes the defaults.
            sampler: Chooses each token in place of the sampler of `params`.

        Raises:
            UserError: The prompt is empty, the prompt and the new tokens exceed the context, or the model does not have
                that dial.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        return Generation(self.session, self.tokenizer, ids, params or Params(), sampler)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a prompt that asks for the next answer, by the model's chat template.

        They are cut as in training: those of a conversation that was trained on begin with those of its first turns.

        Raises:
            UserError: The model has no chat template.
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
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    target: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Engine:
    """Open the exported model in `folder`.

    Args:
        folder: The folder that `adaptive export` wrote.
        device: "auto" (CUDA if it loads), "cpu" or "cuda".
        target: The graph to run: "auto" (the fastest that works here), "portable", "cpu" or "cuda".
        threads: Threads of one operator; None takes one per core, or one for a small model.
        verify: Compare the files that are used with their digests.

    Raises:
        UserError: The model is missing, damaged, of another version, or its parts do not belong together.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder, verify=False)  # the session compares the digests of the graph that it runs
    model = manifest.model
    if verify:
        check_digest(folder / TOKENIZER, manifest.files[TOKENIZER].sha256)
    tokenizer = Tokenizer(folder / TOKENIZER, size=model.tokenizer_size, eos_id=model.eos_id)
    session = Session(folder, manifest, device=device, target=target, threads=threads, verify=verify)
    return Engine(session, tokenizer)
