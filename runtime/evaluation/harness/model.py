"""An exported model as the harness sees one: it scores continuations and texts, and writes answers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ....contract.errors import UserError
from ....contract.file_names import TOKENIZER
from ...dial import Dial, resolve
from ...generation.engine import Engine
from ...generation.sampling.params import Params
from .continuations import Continuation, ContinuationScorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ....contract.messages import Message

NEW_TOKENS = 256
"""Most tokens of an answer where the task does not say, as in the harness's other models."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
            "seed")  # fmt: skip
"""Settings of a task that are settings of our sampler, under the same names."""
IGNORED = ("do_sample", "until", "max_gen_toks")
"""Settings that are read elsewhere."""


class HarnessModel(TemplateLM):  # type: ignore[misc] # the harness publishes no types
    """A model at one point of its dial.

    Args:
        engine: The model.
        dial: The point.
        watch: Is called with the number of requests that are done.
    """

    def __init__(self, engine: Engine, dial: Dial, watch: Callable[[int], None] = lambda count: None) -> None:
        super().__init__()
        self._engine, self._dial, self._watch = engine, dial, watch
        self._scorer = ContinuationScorer(engine, resolve(engine.manifest, dial))
        self._conversations: dict[str, list[int]] = {}  # as the harness gets them, with the ids of their prompts

    @property
    def truncated(self) -> int:
        """Contexts that lost their beginning because they did not fit."""
        return self._scorer.truncated

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._engine.manifest.model.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that follows nothing: the model's BOS token, or the end of a text."""
        bos = self._engine.manifest.generation.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Most tokens of a context and its continuation."""
        return self._engine.manifest.model.context_length

    @property
    def tokenizer_name(self) -> str:
        """What identifies the ids of a prompt: the digests of the tokenizer and of the chat template."""
        template = hashlib.sha256((self._engine.manifest.chat_template or "").encode()).hexdigest()
        return f"{self._engine.manifest.files[TOKENIZER].sha256}-{template}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template of the model, for the harness's record."""
        return self._engine.manifest.chat_template or ""

    def apply_chat_template(self, chat_history: "Sequence[Message]", add_generation_prompt: bool = True) -> str:
        """Return what stands for a conversation in the harness; without the last argument its last message goes on.

        The prompt has the ids of the same conversation in `adaptive generate`: what a task says cannot be read as a
        special token. The harness gets the messages as JSON, since a rendered text could not be turned into those ids.

        Raises:
            UserError: The model has no chat template, or it fails on this conversation.
        """
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        messages = chat_history if add_generation_prompt else chat_history[:-1]
        ids = self._engine.chat(messages) + self._engine.tokenizer.encode(begun)
        conversation = json.dumps([list(chat_history), add_generation_prompt], ensure_ascii=False)
        self._conversations[conversation] = ids
        return conversation

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a prompt: a text, with the model's BOS token unless it is declined, or a conversation."""
        ids = self._conversations.get(string)
        if ids is not None:
            return ids
        tokenizer = self._engine.tokenizer
        return tokenizer.encode(string) if add_special_tokens is False else tokenizer.encode_prompt(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of its continuation.

        An answer in a conversation is encoded on its own, as in training and in chats. Other texts follow the harness:
        spaces at the end of the context move to the continuation, and the two are encoded together.
        """
        if context in self._conversations:
            return self._conversations[context], self.tok_encode(continuation, add_special_tokens=False)
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score continuations; see `ContinuationScorer`."""
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return results

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        wanted = [Continuation(tuple(context), tuple(targets)) for _, context, targets in requests]
        return [(one.logprob, one.greedy) for one in self._scorer.score(wanted, self._watch)]

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of whole texts: every token once, in windows of the context (the harness's)."""
        totals = []
        for text in (request.args[0] for request in requests):
            cut = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows = [(None, *make_disjoint_window(pair)) for pair in cut]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(windows)))
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[str]:
        """Write an answer for each request, several at a time.

        A prompt that leaves no room for its answer loses its beginning, as the harness does it.

        Raises:
            UserError: A task sets what this program cannot do, or the model failed.
        """
        prompts, params = [], []
        for context, settings in (request.args for request in requests):
            own = self.params(settings)
            ids = tuple(self.tok_encode(context))
            prompts.append(self._scorer.fitted(ids, self.max_length - (own.max_new_tokens or 0)))
            params.append(own)
        answers = []
        for one in self._engine.generate_many(prompts, params):
            if one.error is not None:
                raise one.error
            answers.append(one.text)
            self._watch(1)
        return answers

    def params(self, settings: Mapping[str, Any]) -> Params:
        """Return our settings of a generation for those of a task.

        Raises:
            UserError: A setting has no counterpart here, or is outside its range.
        """
        task = normalize_gen_kwargs(dict(settings), NEW_TOKENS)
        unknown = sorted(set(task) - {*SAMPLING, *IGNORED})
        if unknown:
            raise UserError(
                f"a task sets {', '.join(unknown)} in generation_kwargs, which this program does not have; expected "
                f"{', '.join((*IGNORED, *SAMPLING))}; take them out of the task, or choose another one"
            )
        generation = self._engine.manifest.generation
        sampling = {name: task[name] for name in SAMPLING if task.get(name) is not None}
        if not task["do_sample"]:
            sampling["temperature"] = 0.0
        return Params(
            max_new_tokens=min(int(task["max_gen_toks"]), self.max_length // 2),
            stop=tuple(dict.fromkeys(text for text in (*task["until"], *generation.stop) if text)),
            **asdict(self._dial),
            **sampling,
        )
