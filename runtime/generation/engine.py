"""Text generation: prompt in, tokens out, each with its text, usage and time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ...contract.file_names import TOKENIZER
from ...contract.messages import Message
from ..chat.prompt import ChatOptions, chat_ids
from ..dial.dial import Dial
from ..execution.batch import Batch
from ..execution.memory.budget import UNASKED_BYTES, slot_bytes
from ..execution.session import Session
from ..format.files import check_digest
from ..format.manifest import Manifest
from ..speculation.speculation import Speculation
from .generation import Generation
from .loop import Event, Loop
from .many import Completion, Completions
from .request import Request
from .sampling.mask import Grammar
from .sampling.params import Params, params_of
from .sampling.sampler import TokenChooser
from .search.beam_search import BeamSearch
from .search.best_of import Scorer, best_of, mean_logprob, seeded
from .search.hypothesis import Found
from .search.settings import BeamSettings, check_beam_params
from .text.tokenizer import Tokenizer

MANY_SLOTS = 8
"""Texts that `generate_many` computes at a time."""


class Engine:
    """A model ready to generate. One call at a time: a new one ends the one before."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.manifest = session.manifest
        self.speculation = Speculation(self.manifest, exact=session.graph.mixes_sequences)
        self._loop: Loop | None = None
        self._search: BeamSearch | None = None

    def params(self, **given: Any) -> Params:
        """Return the settings that are `given`, and for the rest of the sampling the defaults that the model brings.

        Raises:
            WrongUsageError: A setting is outside its range.
        """
        return params_of(self.manifest.generation, **given)

    def request(
        self,
        prompt: str | Sequence[int],
        params: Params | None = None,
        *,
        sampler: TokenChooser | None = None,
        grammar: Grammar | None = None,
        prompt_logprobs: int | None = None,
        embeds: bool = False,
    ) -> Request:
        """Make a request for a `Loop`; the arguments and errors are those of `generate`, or of `embed`."""
        ids = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        request = Request(
            self.manifest, self.tokenizer, ids, params or self.params(), sampler, grammar=grammar,
            prompt_logprobs=prompt_logprobs, embeds=embeds,
        )  # fmt: skip
        if not embeds:
            request.make_drafter = self.speculation.maker(request.params.speculate, request.thresholds)
        return request

    def generate(
        self,
        prompt: str | Sequence[int],
        params: Params | None = None,
        *,
        sampler: TokenChooser | None = None,
        grammar: Grammar | None = None,
        prompt_logprobs: int | None = None,
    ) -> Generation:
        """Iterate over the new tokens after `prompt`; nothing is computed before the first is requested.

        Args:
            prompt: A text, or ids.
            params: Settings of the generation; None takes the defaults of the model.
            sampler: Chooses each token in place of the sampler of `params`.
            grammar: What the text must match (`runtime/structured`); it ends where nothing can follow.
            prompt_logprobs: How many alternatives to report for each token of the prompt, with its log-probability, in
                `Request.prompt_scores`, 0 to 20; None reports neither.

        Raises:
            UserError: The prompt is empty, the prompt and the new tokens exceed the context, or the model does not have
                that dial.
        """
        request = self.request(prompt, params, sampler=sampler, grammar=grammar, prompt_logprobs=prompt_logprobs)
        return Generation(self.begin, request)

    def generate_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: Params | Sequence[Params] | None = None,
        *,
        grammar: Grammar | None = None,
        slots: int = MANY_SLOTS,
        watch: Callable[[Event], None] | None = None,
    ) -> Completions:
        """Iterate over the texts that follow `prompts`, in their order; each is that of `generate`.

        A prompt that cannot be generated has an error in place of a text, and the others go on.

        Args:
            prompts: Texts, or ids.
            params: Settings of all, or of each; None takes the defaults.
            grammar: What every text must match; None: anything.
            slots: The most texts to compute at a time.
            watch: Is called with every new token and failure, as they come.

        Raises:
            UserError: The caches of `slots` texts do not fit the memory.
            ValueError: There are not as many settings as prompts.
        """
        each = [params] * len(prompts) if params is None or isinstance(params, Params) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"found settings of {len(each)} texts for {len(prompts)} prompts, expected as many")
        completions = []
        for index, (prompt, settings) in enumerate(zip(prompts, each, strict=True)):
            try:
                completions.append(Completion(index, self.request(prompt, settings, grammar=grammar)))
            except UserError as error:
                completions.append(Completion(index, None, error))
        requests = [one.request for one in completions if one.request is not None]
        loop = self.begin([], slots=min(slots, len(requests)), room=max([one.capacity for one in requests], default=1))
        return Completions(loop, completions, watch)

    def embed(
        self, prompts: Sequence[str | Sequence[int]], dial: Dial | None = None, *, slots: int = MANY_SLOTS
    ) -> list[NDArray[np.float32]]:
        """Return the embedding of each text, (D,) float32: the mean of its tokens' hidden states after the last norm.

        The vector of a text does not depend on the other texts.

        Args:
            prompts: Texts, or ids.
            dial: How much of the model runs; None takes the thresholds of training.
            slots: The most texts to compute at a time.

        Raises:
            UserError: The model was exported without its hidden states, a text is empty or exceeds the context, or the
                model does not have that dial.
        """
        params = Params(**({} if dial is None else {one.name: getattr(dial, one.name) for one in fields(Dial)}))
        requests = [self.request(prompt, params, embeds=True) for prompt in prompts]
        loop = self.begin(requests, slots=min(slots, len(requests)))
        while loop.busy:
            for event in loop.step():
                if event.request.error is not None:
                    self._end()
                    raise event.request.error
        return [one.embedding for one in requests]

    def search(
        self,
        prompt: str | Sequence[int],
        params: Params | None = None,
        *,
        beams: int = 4,
        beam_margin: float | None = None,
        length_penalty: float = 0.6,
    ) -> BeamSearch:
        """Search for the most probable text after `prompt`: beam search. Its settings are those of `BeamSettings`.

        It iterates over the tokens of the best text, each as soon as it is certain; `found` has all texts in the end.

        Args:
            prompt: A text, or ids.
            params: Settings of the generation, except those of drawing and guessing; None takes the defaults.
            beams: Most texts at a time.
            beam_margin: Drop texts that are more than this below the best one, in nats; None drops none.
            length_penalty: How much longer texts are favoured, 0 to 10.

        Raises:
            UserError: As in `generate`; or a setting has no meaning here. The first token raises it where the caches of
                the beams do not fit the memory.
        """
        settings = BeamSettings(beams=beams, beam_margin=beam_margin, length_penalty=length_penalty)
        check_beam_params(params or Params())
        request = self.request(prompt, params or Params())  # a model's defaults of sampling have no meaning here
        request.make_drafter = None
        search: BeamSearch | None = None

        def open_batch() -> Batch:
            self._end()
            self._loop, self._search = None, search  # the memory of the loop is free before more is taken
            return self.session.batch(settings.beams, request.capacity)

        search = BeamSearch(request, self.tokenizer, settings, open_batch)
        return search

    def best_of(
        self,
        prompt: str | Sequence[int],
        params: Params | None = None,
        *,
        n: int = 4,
        scorer: Scorer | None = None,
        grammar: Grammar | None = None,
        slots: int = MANY_SLOTS,
    ) -> Found:
        """Draw `n` texts after `prompt` and rank them. The prompt is computed once, where the target can copy it.

        Args:
            prompt: A text, or ids.
            params: Settings of the generation; text i, from 0, has the seed of these plus i.
            n: Texts to draw, at least 1.
            scorer: Returns the score of a text, higher is better; None takes the mean log-probability of its tokens.
            grammar: What every text must match; None: anything.
            slots: The most texts to compute at a time.

        Raises:
            UserError: As in `generate`; or the temperature is 0, which gives `n` equal texts.
        """
        first = self.request(prompt, params)
        requests = [self.request(first.ids, own, grammar=grammar) for own in seeded(first.params, n)]
        loop = self.begin([], slots=min(slots, n), room=first.capacity)
        return best_of(loop, requests, scorer or mean_logprob)

    def begin(self, requests: Sequence[Request], *, slots: int = 1, room: int = 1) -> Loop:
        """End what was going on, and return a loop with these requests.

        Args:
            requests: What to compute.
            slots: Texts to compute at a time, at least.
            room: Tokens that a text may have, at least; more where one of `requests` needs more.
        """
        self._end()
        loop, room = self._loop, max([room, *(one.capacity for one in requests)])
        if loop is None or loop.batch.slots < slots or loop.batch.capacity < room:
            self._loop = None  # its memory is free before more is taken
            loop = self._loop = Loop(
                self.session.batch(max(slots, 1), self._capacity(slots, room)), self.speculation.costs
            )
        for one in requests:
            loop.submit(one)
        return loop

    def _end(self) -> None:
        """End what is going on."""
        loop = self._loop
        for one in [] if loop is None else loop.requests:
            assert loop is not None
            loop.cancel(one)
        if self._search is not None:
            self._search.close()
            self._search = None

    def _capacity(self, slots: int, room: int) -> int:
        """Return the whole context where that is small, so that a longer text finds the same memory, else `room`."""
        graph, context = self.session.graph, self.manifest.model.context_length
        whole = slot_bytes(self.manifest.model, context, graph.kv, max(slots, 1))
        return context if whole <= UNASKED_BYTES else room

    def chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> list[int]:
        """Return the ids of a prompt that asks for the next answer; see `chat_ids`."""
        return chat_ids(self.manifest, self.tokenizer, messages, options)


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
    if verify:
        check_digest(folder / TOKENIZER, manifest.files[TOKENIZER].sha256)
    tokenizer = Tokenizer.of_model(folder, manifest)
    session = Session(folder, manifest, device=device, target=target, threads=threads, verify=verify)
    return Engine(session, tokenizer)
