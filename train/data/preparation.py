"""From a config to a corpus: find, scan, cut and tokenise text, or take it from the cache."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import tokenizers
from tokenizers import Tokenizer

from ...contract.errors import UserError
from ...contract.files import write_whole
from ...contract.text.stretches import ENCODED_CHARS, LEARNED_CHARS
from ..system.cache_folder import cache_folder, digest_of
from .augment.augmenter import Augmenter, Plan
from .augment.rewrite import Rewriter
from .build import expected_bytes, free_bytes, report_unknown, write_entry
from .cache import Entry, disk_error, new_entry, open_entry
from .config import DataConfig, TaskConfig, TokenizerConfig
from .corpus import Corpus
from .sources.chat import ChatTemplate
from .sources.documents import segments
from .sources.parts import Part
from .sources.scan import Progress, Scan, scan_sources
from .sources.sources import Item, Log, Source, resolve_source, resolve_sources
from .tasks import identity_of_tasks, make_tasks
from .tokenizers.given_tokenizer import GivenTokenizer
from .tokenizers.round_trip import notes_on_losses
from .tokenizers.tokenizers import (
    Encoder,
    eos_id,
    make_tokenizer,
    parse_tokenizer,
    unknown_id,
    vocabulary_size,
    with_task_tokens,
)

# Part of every key: raise it when the same input would give other tokens.
PIPELINE_VERSION = 1


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
        self._cut_noted = False
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
        tokenizer = self._with_task_tokens(self._tokenizer(every, plan.phrases))
        end = self.given.end if self.given else eos_id(tokenizer)
        tokenizer_json = tokenizer.to_str()
        encoder = Encoder(tokenizer_json, self.tokenizer_config.kind, self._note_cut)
        self._note_losses(every, tokenizer_json)
        entry_of = {part: self._entry(part, tokenizer, tokenizer_json, encoder) for part in chain(every, *val)}
        entries = [entry_of[part] for part in every]
        leads = [None if task.token is None else tokenizer.token_to_id(task.token) for task in tasks]
        augmenter = Augmenter(plan, tokenizer, encoder, seed, self.log, [lead for lead in leads if lead is not None])
        variants = []
        for index, (part, entry) in enumerate(zip(every, entries, strict=True)):
            rewritten = [
                self._entry(part, tokenizer, tokenizer_json, encoder, rewriter).train
                for rewriter in augmenter.rewriters(index)
            ]
            variants.append(augmenter.changed(index, part.name, [entry.train, *rewritten]))
        report_unknown(
            [entry_of[part] for part in chain(*val)], tokenizer.get_vocab_size(), self.tokenizer_config, self.log
        )
        corpus = Corpus(
            tokenizer=tokenizer,
            eos_id=end,
            entries=entries,
            tasks=make_tasks(self.data, train, val, entry_of, leads),
            sampling=self.data.sampling,
            names=[part.name for part in every],
            pack=self.data.pack,
            seed=seed,
            digest=digest_of(
                [
                    PIPELINE_VERSION,
                    tokenizer_json,
                    [part.identity() for part in every],
                    [part.identity() for part in chain(*val)],
                    [part.weight for part in every],
                    self._settings(chats, self.data.loss_on),
                    self.data.pack,
                    *self._ends(),
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

    def _with_task_tokens(self, tokenizer: Tokenizer) -> Tokenizer:
        """Add the tokens of the tasks; of a given tokenizer they are tokens already.

        Raises:
            UserError: a new tokenizer has one of them already, or a given one lacks one.
        """
        tokens = [task.token for task in self.data.tasks if task.token is not None]
        if self.given is None:
            return with_task_tokens(tokenizer, tokens, self.tokenizer_config.kind)
        for token in tokens:
            if tokenizer.token_to_id(token) is None:
                raise UserError(
                    f"the task token {token!r} is not in {self.given.name}, and nothing can be added to the tokenizer "
                    "of a model that is trained further; choose a token of that model, or leave it out"
                )
        return tokenizer

    def _note_cut(self, length: int) -> None:
        """Log once that a stretch of `length` characters is cut."""
        if not self._cut_noted:
            self._cut_noted = True
            self.log(
                f"a stretch of at least {length:,} characters without a break is cut into pieces of {LEARNED_CHARS:,} "
                f"to learn a vocabulary and of {ENCODED_CHARS:,} to encode it: no token spans a cut"
            )

    def _note_losses(self, train: list[Part], tokenizer_json: str) -> None:
        """Log which text a given tokenizer, or one of words, cannot reproduce."""
        config = self.tokenizer_config
        if config.is_file or config.kind == "words":
            sample = (s.text for part in train for s in part.segments(self.template) if not s.held_out)
            for note in notes_on_losses(tokenizer_json, config.kind, sample):
                self.log(note)

    def _held_out(self, task: TaskConfig) -> Source | None:
        data = self.data
        if task.val is None:
            return None
        return resolve_source(task.val, data.text_field, self.log, data.dir, data.end_marker)

    def _ends(self) -> list[object]:
        """Return what is part of a key where texts begin or end with tokens of another program."""
        return self.given.identity() if self.given else []

    def _settings(self, chats: int, loss_on: str) -> list[object]:
        return [loss_on, self.template.text] if chats else []

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

    def _tokenizer(self, train: list[Part], phrases: Sequence[str]) -> Tokenizer:
        """Train the tokenizer on the training text and on `phrases`, or take it from the cache.

        The same text and settings make the same tokenizer.
        """
        config = self.tokenizer_config
        if self.given is not None:
            return self.given.load()
        if config.is_file or config.kind == "bytes":
            return make_tokenizer(config, iter(()))
        bounded = config.kind in ("bpe", "words")
        total = sum(part.num_bytes for part in train)
        settings = [
            config.kind,
            config.vocab_size,
            config.train_bytes if bounded and total > config.train_bytes else None,
        ]
        chat = self.template.text if any(part.chats for part in train) else None
        texts = [part.identity() for part in train]
        key = digest_of(
            [PIPELINE_VERSION, tokenizers.__version__, settings, chat, texts, *([phrases] if phrases else [])]
        )
        path = self.folder / "tokenizers" / f"{key[:32]}.json"
        try:
            return parse_tokenizer(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            pass
        except (OSError, UserError) as error:
            self.log(f"training the tokenizer again: {error}")
        share = min(1.0, config.train_bytes / max(1, total)) if bounded else 1.0
        if share < 1:
            self.log(
                f"the tokenizer learns from {share:.1%} of the training text "
                f"(tokenizer.train_bytes={config.train_bytes:,})"
            )
        tokenizer = make_tokenizer(config, chain(self._training_text(train, share, total), phrases), self._note_cut)
        text = tokenizer.to_str()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise disk_error(error, path.parent, len(text.encode())) from None
        return tokenizer

    def _training_text(self, train: list[Part], share: float, total: int) -> Iterator[str]:
        """Read the training text in pieces; with a share below 1, evenly spaced ones."""
        done = number = 0
        for part in train:
            for item, cut in zip(part.items, part.cuts, strict=True):
                for segment in segments(item, cut, self.template, answers_only=False):
                    if segment.held_out:
                        break
                    done += len(segment.text)
                    number += 1
                    if int(number * share) > int((number - 1) * share):
                        yield segment.text
                    self.progress("learning the vocabulary", min(done, total), total)

    def _entry(
        self,
        part: Part,
        tokenizer: Tokenizer,
        tokenizer_json: str,
        encoder: Encoder,
        rewriter: Rewriter | None = None,
    ) -> Entry:
        variant = [] if rewriter is None else [rewriter.identity, part.left(rewriter)]
        settings = [*self._settings(part.chats, part.loss_on), *self._ends()]
        number = None if part.lead is None else tokenizer.token_to_id(part.lead)
        lead = None if part.lead is None or number is None else (number, part.lead)
        begun = [] if lead is None else ["begins with", *lead]
        key = digest_of([PIPELINE_VERSION, tokenizer_json, part.identity(), settings, *variant, *begun])
        folder = self.folder / "tokens" / key[:32]
        end = self.given.end if self.given else eos_id(tokenizer)
        wide = vocabulary_size(tokenizer) > 2**16
        for _ in range(3):  # another process may remove a damaged entry just when we have written a good one
            entry = open_entry(folder)
            if entry is not None:
                return entry
            sample = part.segments(self.template)
            needed = expected_bytes(sample, encoder, part.num_bytes, (4 if wide else 2) + part.masked)
            free = free_bytes(folder.parent)
            if free < needed:
                raise UserError(
                    f"the tokenised text needs about {needed:,} bytes in {folder.parent}, where {free:,} are free; "
                    "free some, or choose another folder: --set data.cache_dir=FOLDER or the variable ADAPTIVE_CACHE"
                )
            done = 0

            def advance(count: int, part: Part = part) -> None:
                nonlocal done
                done += count
                self.progress(f"tokenising {part.name}", min(done, part.num_bytes), part.num_bytes)

            with new_entry(folder, needed) as place:
                write_entry(
                    place,
                    part.segments(self.template, rewriter),
                    encoder,
                    wide=wide,
                    masked=part.masked,
                    eos_id=end,
                    end=str(tokenizer.id_to_token(end)),
                    bos_id=self.given.begin if self.given else None,
                    lead=lead,
                    unknown=unknown_id(tokenizer),
                    advance=advance,
                )
        raise UserError(
            f"{folder} is damaged again each time it is written; check the disk, or choose another folder with "
            "--set data.cache_dir=FOLDER"
        )


def _silent(_what: str, _done: int, _total: int) -> None:
    """Ignore the progress."""
