"""What may stand for a word: a table of the user's, or WordNet where nltk and its corpus are installed."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....contract.errors import UserError
from ...system.yaml_values import load_yaml
from ..order import uniform
from .config import WORDNET

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# The most frequent words carry grammar and not meaning: WordNet has "angstrom" for "a" and "inch" for "in".
_GRAMMAR = frozenset(
    "a about above after again all also am an and any are as at be because been before being below between both but by "  # noqa: SIM905 - as people read them
    "can could did do does down during each few for from had has have he her here hers him his how i if in into is it "
    "its just may me might more most must my no nor not now of off on once one only or other our out over own same she "
    "should so some such than that the their them then there these they this those through to too under until up us "
    "very was we were what when where which while who whom why will with would you your".split()
)
Lookup = Callable[[str], tuple[str, ...]]


class Synonyms:
    """Replaces words of a text. `digest` changes with what the table says.

    Raises:
        UserError: there is no such table, it does not hold words, or WordNet is not installed.
    """

    def __init__(self, source: str) -> None:
        if source == WORDNET:
            self._look, self.digest = wordnet()
            return
        table = read_table(Path(source).expanduser())
        self._look = lambda word: table.get(word, ())
        self.digest = hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest()

    def replace(self, text: str, share: float, key: int, known: Callable[[str], bool]) -> str:
        """`text` with `share` of the words that have a synonym replaced, as `key` chooses.

        Of the synonyms of a word only those that the tokenizer knows are taken (`known` is asked with the space before
        them): one that is unknown to the model would teach it nothing. A capital stays a capital.
        """
        words = list(_WORD.finditer(text))
        chance, choice = uniform(len(words), key), uniform(len(words), key + 1)
        pieces, done = [], 0
        for match, drawn, which in zip(words, chance, choice, strict=True):
            if drawn >= share:
                continue
            before = text[match.start() - 1 : match.start()]
            space = before if before == " " else ""
            found = [fitted for one in self._look(match[0].lower()) if known(space + (fitted := like(one, match[0])))]
            if found:
                pieces += [text[done : match.start()], found[int(which * len(found))]]
                done = match.end()
        return "".join([*pieces, text[done:]])


def like(word: str, model: str) -> str:
    """`word` with the capitals of `model`."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Word, in small letters -> what may stand for it. A .tsv has a word and its synonyms in each line, with tabs
    between; .json and .yaml hold an object of lists. Raises UserError."""
    rows: Iterable[tuple[Any, Any]]
    try:
        if path.suffix == ".tsv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                rows = [(row[0], row[1:]) for row in lines if row and not row[0].startswith("#")]
        else:
            content = read_values(path)
            if not isinstance(content, dict):
                raise UserError(
                    f"{path} holds a {type(content).__name__}, expected an object such as {{big: [large, huge]}}"
                )
            rows = list(content.items())
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read("synonyms", path, error) from None
    table: dict[str, tuple[str, ...]] = {}
    for word, synonyms in rows:
        listed = [synonyms] if isinstance(synonyms, str) else synonyms
        if not isinstance(word, str) or not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise UserError(f"{path}: {word!r} has {synonyms!r}, expected a word and the words that may stand for it")
        kept = tuple(one.strip() for one in listed if one.strip() and one.strip() != word)
        if kept:
            table[word.strip().lower()] = kept
    if not table:
        raise UserError(f"{path} holds no synonyms; expected lines such as: big, a tab, large, a tab, huge")
    return table


def read_values(path: Path) -> Any:
    """What a .json or .yaml file holds. Raises UserError, or OSError and UnicodeDecodeError as reading does."""
    if path.suffix not in (".json", ".yaml", ".yml", ".tsv", ".txt"):
        raise UserError(f"{path} has the extension {path.suffix or '(none)'!r}; expected .json or .yaml, .tsv or .txt")
    try:
        return load_yaml(path.read_text(encoding="utf-8-sig"))  # JSON is YAML
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not {path.suffix[1:].upper()}: {error}") from None


def cannot_read(what: str, path: Path, error: Exception) -> UserError:
    """The words for a file of `data.augment` that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
    return UserError(f"cannot read the {what} {path}: {reason}; check the path of data.augment.{what}")


def wordnet() -> tuple[Lookup, str]:
    """Lemmas of all synsets of a word (EDA), and what tells one release of WordNet from another. Nothing is fetched.

    Raises:
        UserError: nltk or its corpus is not installed.
    """
    try:
        corpus: Any = importlib.import_module("nltk.corpus").wordnet
        corpus.ensure_loaded()
        version = str(corpus.get_version())
    except ModuleNotFoundError:
        raise UserError(
            'data.augment.synonyms is wordnet, which needs nltk: pip install "adaptive-lm[augment]"; or name a table '
            "of your own"
        ) from None
    except LookupError:
        raise UserError(
            "nltk is installed, but not its corpus wordnet; fetch it once: python -m nltk.downloader wordnet; or name "
            "a table of your own in data.augment.synonyms"
        ) from None

    @lru_cache(maxsize=2**16)
    def look(word: str) -> tuple[str, ...]:
        if word in _GRAMMAR:
            return ()
        names = {lemma.name().replace("_", " ") for synset in corpus.synsets(word) for lemma in synset.lemmas()}
        return tuple(sorted(name for name in names if name.lower() != word))

    return look, f"wordnet {version}"
