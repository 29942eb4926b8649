"""One text to generate or to embed: its prompt and settings, and what came of it so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ..dial.dial import resolve
from ..execution.sequence import Sequence
from ..execution.step import Step
from ..execution.usage.cost import Meter, Usage
from ..execution.usage.routes import Routes, at
from ..format.manifest import Manifest
from ..speculation.drafter import Drafter
from .sampling.logprobs import TokenLogprob, token_logprob
from .sampling.mask import Grammar, TokenMask
from .sampling.params import Params, check_logprobs, new_tokens_of
from .sampling.sampler import Sampler, TokenChooser
from .text.stop import checked_stops
from .text.tokenizer import Tokenizer
from .text.visible_text import VisibleText


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
    logprob: float | None = None
    """Log-probability that the model gave it, at temperature 1, before penalties, biases, masks and filters; None where
    it was not requested."""
    top_logprobs: Mapping[int, float] | None = None
    """Those of the most probable tokens at its place, by id, the most probable first; None where not requested."""

    @cached_property
    def usage(self) -> Usage:
        """The compute of the pass that it was chosen from, computed when first read."""
        return self.meter.usage(self.routes)


class Choice(NamedTuple):
    """A token that was chosen."""

    token: int
    text: str
    """As in `Token`."""
    routes: Routes
    logprob: TokenLogprob | None
    """None where it was not requested."""


class Request:
    """A text to generate. It waits, runs in a slot of a batch, and ends; `Loop` moves it on.

    Args:
        manifest: The model.
        tokenizer: Its tokenizer.
        prompt: Token ids.
        params: Settings of the generation.
        sampler: Chooses each token in place of the sampler of `params`.
        grammar: What the text must match; it ends where nothing can follow. None: anything.
        prompt_logprobs: How many alternatives to report with the log-probability of each token of the prompt, 0 to 20;
            the whole prompt is computed then. None reports neither.
        embeds: Whether to compute the embedding of the prompt and no text; of `params` only the dial counts then.

    Raises:
        UserError: The prompt is empty, an id is outside the vocabulary, prompt and new tokens exceed the context, the
            model does not have that dial or gives no hidden states to embed with, or `prompt_logprobs` is outside its
            range.
        ValueError: There are both a sampler and a grammar.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: Params,
        sampler: TokenChooser | None = None,
        *,
        grammar: Grammar | None = None,
        prompt_logprobs: int | None = None,
        embeds: bool = False,
    ) -> None:
        model = manifest.model
        for where, ids in (("the prompt", prompt), ("logit_bias", params.logit_bias)):
            wrong = next((token for token in ids if not 0 <= token < model.tokenizer_size), None)
            if wrong is not None:
                raise UserError(f"found token {wrong} in {where}, this model has 0 to {model.tokenizer_size - 1}")
        check_logprobs("prompt_logprobs", prompt_logprobs)
        if sampler is not None and grammar is not None:
            raise ValueError("found both a sampler and a grammar, expected one: the sampler would not see the grammar")
        if embeds:
            require_embeddable(manifest, prompt)
        self.params = params
        self.prompt_tokens = len(prompt)
        self.max_new_tokens = 0 if embeds else new_tokens_of(params, len(prompt), model.context_length)
        self.thresholds = resolve(manifest, params)
        self.ids = list(prompt)
        """Prompt and text so far."""
        self.status = "waiting"
        """"waiting", "running" or "ended"."""
        self.finish_reason: str | None = None
        """None until it ends, then "eos", "stop", "length", "embedded", "cancelled" or "error"."""
        self.error: Exception | None = None
        """Why it failed, with the reason "error"."""
        self.seed: int | None = params.seed if sampler is None else sampler.seed
        """The seed in use, drawn or given; a drawn one is None until the request runs."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in memory already."""
        self.borders: tuple[int, ...] = ()
        """Positions in the prompt at which a pass ends, so that the states there are copied."""
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
        self.prompt_logprobs = prompt_logprobs
        """How many alternatives to report for each token of the prompt; None reports nothing."""
        self.prompt_scores: list[TokenLogprob] = []
        """The log-probability of each token of the prompt computed so far, where `prompt_logprobs` is set."""
        self.embeds = embeds
        """Whether it ends with the embedding of its prompt."""
        self.elapsed = 0.0
        """Seconds of the passes since the last token."""
        self.copying = 0.0
        """Seconds of copying states for drafts since the last pass."""
        self._hidden_sum = np.zeros(model.dim if embeds else 0)  # (D,) float64
        self._tokenizer, self._size = tokenizer, model.tokenizer_size
        self._stop = checked_stops((*params.stop, *manifest.generation.stop))
        self._sampler, self._grammar = sampler, grammar
        self._mask: TokenMask | None = None
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

    @property
    def reads_all(self) -> bool:
        """Whether it needs a result for each token of the prompt, so that none is taken from memory."""
        return self.embeds or self.prompt_logprobs is not None

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The mean of the hidden states of the prompt, (D,); once it has ended with the reason "embedded"."""
        return (self._hidden_sum / self.prompt_tokens).astype(np.float32)

    def begin(self, sequence: Sequence) -> None:
        """Start to run in `sequence`, which may hold the first tokens of the prompt."""
        self.status, self.sequence, self.cached_tokens = "running", sequence, len(sequence.ids)
        if self.embeds:
            return
        if self._sampler is None:
            self._mask = None if self._grammar is None else self._grammar.mask()
            self._sampler = Sampler(self.params, self._size, self.ids, mask=self._mask)
        self.seed = self._sampler.seed
        self._text = VisibleText(self._tokenizer, self.ids, self._stop, self.params.show_special)
        self.drafter = None if self.make_drafter is None else self.make_drafter(sequence)

    def read(self, step: Step) -> None:
        """Take what is needed from a part of the prompt: hidden states, or the log-probabilities of what follows."""
        if self.embeds:
            self._add(step)
            return
        alternatives, sequence = self.prompt_logprobs, self.sequence
        assert alternatives is not None
        assert sequence is not None
        if not self.prompt_scores:
            self.prompt_scores.append(TokenLogprob(None, {}))
        first = len(sequence.ids) - len(step.logits) + 1
        following = self.ids[first : self.prompt_tokens]  # one fewer than rows at the end of the prompt
        for logits, token in zip(step.logits, following, strict=False):
            self.prompt_scores.append(token_logprob(logits[: self._size], token, alternatives))

    def _add(self, step: Step) -> None:
        """Add up hidden states, token by token, so that the sum does not depend on where a part of the prompt ends.

        Raises:
            ArithmeticError: They are not finite numbers.
        """
        assert step.hidden is not None
        for state in step.hidden:
            self._hidden_sum += state
        if not np.isfinite(self._hidden_sum).all():
            raise ArithmeticError("the model gave hidden states that are not finite numbers")

    def take(self, step: Step, draft: list[int]) -> list[Choice]:
        """Choose the tokens that follow from a pass over the last token and `draft`.

        There is one more than drafted tokens were right, or fewer where the text ends. The sampler sees the logits that
        it would see without a draft, in the same order, so the text is the same.
        """
        assert self._sampler is not None
        assert self._text is not None
        choices, ids, end = [], self.ids, self.prompt_tokens + self.max_new_tokens
        rows, alternatives = 1 + len(draft), self.params.logprobs
        for row in range(rows):
            logits = step.logits[row - rows]
            token = self._sampler.choose(logits)
            ids.append(token)
            complete = self._mask is not None and self._mask.ended
            reason = "stop" if complete else "length" if len(ids) == end else None
            text, self.finish_reason = self._text.add(token, end=reason)
            logprob = None if alternatives is None else token_logprob(logits[: self._size], token, alternatives)
            choices.append(Choice(token, text, at(step.routes, row - rows), logprob))
            if self.finish_reason is not None or row == len(draft) or token != draft[row]:
                break
        return choices

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Stop to run, and drop what only a running request needs."""
        if self.drafter is not None and error is None:
            self.drafting_verdict = self.drafter.verdict()
        self.status, self.finish_reason, self.error = "ended", reason, error
        self.sequence = self.drafter = self._sampler = self._mask = self._text = self.make_drafter = None


def require_hidden_states(manifest: Manifest) -> None:
    """Refuse a model that cannot embed texts.

    Raises:
        UserError: It was exported without its hidden states.
    """
    if not manifest.model.hidden_states:
        raise UserError(
            "this model was exported without its hidden states, so it has no embeddings; export it again with: "
            "adaptive export RUN --onnx --embeddings"
        )


def require_embeddable(manifest: Manifest, prompt: list[int]) -> None:
    """Refuse a prompt that cannot be embedded.

    Raises:
        UserError: The model was exported without its hidden states, or the prompt is empty or exceeds the context.
    """
    require_hidden_states(manifest)
    context = manifest.model.context_length
    if not 1 <= len(prompt) <= context:
        raise UserError(f"found a text of {len(prompt)} tokens, expected 1 to {context}; shorten it or split it")
