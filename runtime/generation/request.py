"""One text to generate: its prompt and settings, and what came of it so far."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ...contract.errors import UserError
from ..dial.dial import resolve
from ..execution.cost import Meter, Usage
from ..execution.routes import Routes, at
from ..execution.sequence import Sequence
from ..execution.step import Step
from ..format.manifest import Manifest
from ..speculation.drafter import Drafter
from .params import Params, new_tokens_of
from .sampler import Sampler, TokenChooser
from .tokenizer import Tokenizer
from .visible_text import VisibleText


@dataclass(frozen=True)
class Token:
    """One new token."""

    id: int
    text: str
    """Text that became certain with this token, in whole characters; "" or the end of a character begun earlier."""
    seconds: float
    """Measured time of the pass and of the choice of the token; for the first token, that of the whole prompt.

    Beside other sequences that is the time of the whole pass. Tokens that one pass gave share its time equally.
    """
    routes: Routes
    """Routes of the token from which this one was chosen."""
    meter: Meter

    @cached_property
    def usage(self) -> Usage:
        """The compute of the pass that it was chosen from, computed when first read."""
        return self.meter.usage(self.routes)


class Request:
    """A text to generate. It waits, runs in a slot of a batch, and ends; `Loop` moves it on.

    Args:
        manifest: The model.
        tokenizer: Its tokenizer.
        prompt: Token ids.
        params: Settings of the generation.
        sampler: Chooses each token in place of the sampler of `params`.

    Raises:
        UserError: The prompt is empty, an id is outside the vocabulary, prompt and new tokens exceed the context, or
            the model does not have that dial.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: Params,
        sampler: TokenChooser | None = None,
    ) -> None:
        model = manifest.model
        wrong = next((token for token in prompt if not 0 <= token < model.tokenizer_size), None)
        if wrong is not None:
            raise UserError(f"found token {wrong} in the prompt, this model has 0 to {model.tokenizer_size - 1}")
        self.params = params
        self.prompt_tokens = len(prompt)
        self.max_new_tokens = new_tokens_of(params, len(prompt), model.context_length)
        self.thresholds = resolve(manifest, params)
        self.ids = list(prompt)
        """Prompt and text so far."""
        self.status = "waiting"
        """"waiting", "running" or "ended"."""
        self.finish_reason: str | None = None
        """None until it ends, then "eos", "stop", "length", "cancelled" or "error"."""
        self.error: Exception | None = None
        """Why it failed, with the reason "error"."""
        self.seed: int | None = params.seed if sampler is None else sampler.seed
        """The seed in use, drawn or given; a drawn one is None until the request runs."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in memory already."""
        self.drafted = 0
        """Tokens that were guessed ahead."""
        self.accepted = 0
        """How many of them were right."""
        self.drafting_verdict: str | None = None
        """When it has ended: why nothing was guessed any more, in one line; None where there is nothing to say."""
        self.cancelled = False
        """Whether `Loop.cancel` was called; the loop ends it between two passes."""
        self.sequence: Sequence | None = None
        """Its slot of the batch, while it runs."""
        self.make_drafter: Callable[[Sequence], Drafter] | None = None
        """Returns what guesses tokens ahead in a sequence; called when the request begins to run."""
        self.drafter: Drafter | None = None
        self.elapsed = 0.0
        """Seconds of the passes since the last token."""
        self._tokenizer, self._size = tokenizer, model.tokenizer_size
        self._sampler = sampler
        self._text: VisibleText | None = None

    @property
    def capacity(self) -> int:
        """Tokens for which it needs room."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def new_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def reading(self) -> int:
        """Tokens of the prompt that are not computed yet."""
        left = 0 if self.sequence is None else self.prompt_tokens - len(self.sequence.ids)
        return left if left > 0 else 0

    def begin(self, sequence: Sequence) -> None:
        """Start to run in `sequence`, which may hold the first tokens of the prompt."""
        self.status, self.sequence, self.cached_tokens = "running", sequence, len(sequence.ids)
        if self._sampler is None:
            self._sampler = Sampler(self.params, self._size, self.ids)
        self.seed = self._sampler.seed
        self._text = VisibleText(self._tokenizer, self.ids, self.params.stop)
        self.drafter = None if self.make_drafter is None else self.make_drafter(sequence)

    def take(self, step: Step, draft: list[int]) -> list[tuple[int, str, Routes]]:
        """Choose the tokens that follow from a pass over the last token and `draft`: each with its text and routes.

        There is one more than drafted tokens were right, or fewer where the text ends. The sampler sees the logits that
        it would see without a draft, in the same order, so the text is the same.
        """
        assert self._sampler is not None
        assert self._text is not None
        chosen, ids, end = [], self.ids, self.prompt_tokens + self.max_new_tokens
        rows = len(step.logits)
        for row in range(rows):
            token = self._sampler.choose(step.logits[row])
            ids.append(token)
            text, self.finish_reason = self._text.add(token, last=len(ids) == end)
            chosen.append((token, text, at(step.routes, row - rows)))
            if self.finish_reason is not None or row == len(draft) or token != draft[row]:
                break
        return chosen

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Stop to run, and drop what only a running request needs."""
        self.status, self.finish_reason, self.error = "ended", reason, error
        self.drafting_verdict = None if self.drafter is None else self.drafter.verdict()
        self.sequence = self.drafter = self._sampler = self._text = self.make_drafter = None
