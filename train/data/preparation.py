"""From a config to a corpus: find, scan, cut and tokenise text, or take it from the cache."""

import sys
from itertools import chain

from ...contract.errors import UserError
from ..system.cache_folder import cache_folder, digest_of
from .augment.augmenter import Augmenter, Plan
from .build import report_unknown
from .cache import PIPELINE_VERSION
from .config import DataConfig, TaskConfig, TokenizerConfig
from .corpus import Corpus
from .part_tokenizer import PartTokenizer
from .sources.chat import ChatTemplate
from .sources.parts import Part
from .sources.scan import Progress, Scan, scan_sources
from .sources.sources import Item, Log, Source, resolve_source, resolve_sources
from .tasks import identity_of_tasks, make_tasks
from .tokenizers.given_tokenizer import GivenTokenizer
from .vocabulary import Vocabulary


def log_to_stderr(text: str) -> None:
    """Print a message for the user to stderr."""
    print(text, file=sys.stderr)


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    log: Log = log_to_stderr,
    length: int | None = None,
    given: GivenTokenizer | None = None,
) -> Corpus:
    """Read, cut and tokenise the text of `data`, or take it from the cache.

    Args:
        data: The section with the sources.
        tokenizer: The section of the tokenizer.
        seed: Chooses the order of windows.
        progress: Called now and then with (name of the work, bytes done, bytes in all).
        log: Called with each message for the user.
        length: Refuse a training text shorter than one window of this length here, not at the first batch.
        given: The tokenizer, where the run goes on from another one; then `tokenizer` only says of what kind it is.

    Raises:
        UserError: something is wrong with the input; the message names file and line.
    """
    return _Preparation(data, tokenizer, progress, log, given).run(seed, length)


class _Preparation:
    """The work of one `prepare`."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: TokenizerConfig,
        progress: Progress | None,
        log: Log,
        given: GivenTokenizer | None,
    ) -> None:
        self.data, self.tokenizer_config, self.given = data, tokenizer, given
        self.progress = progress or _silent
        self.notes: list[str] = []
        self._log = log
        self.folder = cache_folder(data.cache_dir)
        own = None if given is None else given.template
        named = data.chat_template
        self.template = ChatTemplate(own) if named is None else ChatTemplate.from_config(named)

    def log(self, text: str) -> None:
        self.notes.append(text)
        self._log(text)

    def run(self, seed: int, length: int | None) -> Corpus:
        tasks = self.data.each_task
        sources = [resolve_sources(self.data, self.log, task.sources) for task in tasks]
        held = [self._held_out(task) for task in tasks]
        named = [*chain(*sources), *(source for source in held if source)]
        scanned = iter(scan_sources(named, self.folder / "scans", self.progress, self.log))
        train = [
            [
                self._part(task, source, next(scanned), self.data.val_fraction if own is None else 0.0)
                for source in group
            ]
            for task, group, own in zip(tasks, sources, held, strict=True)
        ]
        val = [
            parts if own is None else [self._part(task, own, next(scanned), 1.0)]
            for task, parts, own in zip(tasks, train, held, strict=True)
        ]
        every = list(chain(*train))
        template, chats = self._conversations(train, val)
        trained_on = self._refuse_or_report(train, val, chats)
        plan = Plan([part.augment or self.data.augment for part in every])
        vocabulary = Vocabulary(self.tokenizer_config, self.given, self.template, self.folder, self.log, self.progress)
        task_tokens = [task.token for task in self.data.tasks if task.token is not None]
        tokenizer = vocabulary.tokenizer(every, plan.phrases, task_tokens)
        part_tokenizer = PartTokenizer(
            tokenizer, self.tokenizer_config.kind, self.given, self.template, self.folder,
            cut=vocabulary.note_cut, progress=self.progress,
        )  # fmt: skip
        vocabulary.note_losses(every, part_tokenizer.json)
        entry_of = {part: part_tokenizer.entry(part) for part in chain(every, *val)}
        entries = [entry_of[part] for part in every]
        leads = [None if task.token is None else tokenizer.token_to_id(task.token) for task in tasks]
        augmenter = Augmenter(
            plan, tokenizer, part_tokenizer.encoder, seed, self.log, [lead for lead in leads if lead is not None]
        )
        variants = []
        for index, (part, entry) in enumerate(zip(every, entries, strict=True)):
            rewritten = [part_tokenizer.entry(part, rewriter).train for rewriter in augmenter.rewriters(index)]
            variants.append(augmenter.changed(index, part.name, [entry.train, *rewritten]))
        report_unknown(
            [entry_of[part] for part in chain(*val)], tokenizer.get_vocab_size(), self.tokenizer_config, self.log
        )
        corpus = Corpus(
            tokenizer=tokenizer,
            eos_id=part_tokenizer.end,
            entries=entries,
            tasks=make_tasks(self.data, train, val, entry_of, leads),
            sampling=self.data.sampling,
            names=[part.name for part in every],
            pack=self.data.pack,
            seed=seed,
            digest=digest_of(
                [
                    PIPELINE_VERSION,
                    part_tokenizer.json,
                    [part.identity() for part in every],
                    [part.identity() for part in chain(*val)],
                    [part.weight for part in every],
                    part_tokenizer.settings(chats, self.data.loss_on),
                    self.data.pack,
                    *part_tokenizer.identity,
                    *([[part.epochs for part in every]] if any(part.epochs for part in every) else []),
                    *plan.identity([[item.name for item in part.items] for part in every]),
                    *identity_of_tasks(self.data),
                ]
            ),
            chat_template=template if chats else None,
            notes=self.notes,
            epochs=[part.epochs for part in every],
            val_is_trained_on=trained_on,
            variants=variants,
            noise=[
                augmenter.noise(index, [item.name for item in part.items], entry.train)
                for index, (part, entry) in enumerate(zip(every, entries, strict=True))
            ],
        )
        if length is not None:
            corpus.require(length)
        return corpus

    def _part(self, task: TaskConfig, source: Source, scanned: list[tuple[Item, Scan]], val_fraction: float) -> Part:
        return Part(source, scanned, val_fraction, task.loss_on or self.data.loss_on, task.token)

    def _conversations(self, train: list[list[Part]], val: list[list[Part]]) -> tuple[str, int]:
        """Return the chat template of the exported model, and the number of conversations in the text.

        The template begins with the token of the task whose texts are conversations.

        Raises:
            UserError: the given tokenizer comes with a template that cannot write conversations.
        """
        parts = dict.fromkeys(chain(*train, *val))
        chats = sum(part.chats for part in parts)
        if self.given is not None:
            self.given.refuse_conversations(chats, self.data.chat_template)
        leads = list(dict.fromkeys(part.lead or "" for part in parts if part.chats))
        if len(leads) > 1:
            self.log(
                "conversations belong to several tasks with different tokens, so the chat template of the model begins "
                "with none of them; a prompt that begins with a token asks for its task"
            )
        return (leads[0] if len(leads) == 1 else "") + self.template.text, chats

    def _held_out(self, task: TaskConfig) -> Source | None:
        data = self.data
        if task.val is None:
            return None
        return resolve_source(task.val, data.text_field, self.log, data.dir, data.end_marker)

    def _refuse_or_report(self, train: list[list[Part]], val: list[list[Part]], chats: int) -> bool:
        """Refuse or report settings that do not fit the text.

        Returns:
            Whether all held-out text is trained on as well.
        """
        for task, parts, held in zip(self.data.each_task, train, val, strict=True):
            if (task.loss_on or self.data.loss_on) == "answers" and not any(part.chats for part in chain(parts, held)):
                of = f" of the task {task.name}" if task.name else ""
                cure = f"the loss_on{of}" if task.loss_on else "--set data.loss_on=answers"
                raise UserError(
                    f"loss_on is 'answers', but no record{of} has an answer; expected records of prompt and "
                    f"completion, or of messages with role assistant. For plain text leave out {cure}"
                )
        if self.data.chat_template is not None and not chats:
            self.log("data.chat_template is not used: no record is a conversation")
        trained = {scan.digest for part in chain(*train) for scan in part.scans}
        everything = True
        for parts, held in zip(train, val, strict=True):
            if held is parts:
                everything = False
                continue
            seen = [item for item, scan in zip(held[0].items, held[0].scans, strict=True) if scan.digest in trained]
            for item in seen:
                self.log(
                    f"{item.name} is trained on as well as held out: its loss does not show how the model does on new "
                    "text"
                )
            everything = everything and len(seen) == len(held[0].items)
        return everything


def _silent(_what: str, _done: int, _total: int) -> None:
    """Ignore the progress."""
