"""Synonyms of words: from a table of the user, or from WordNet where nltk and its corpus are installed."""

import csv
import hashlib
import importlib
import io
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....contract.errors import UserError
from ....contract.files import user_path
from ....contract.text.file import read_text
from ...system.yaml_values import load_yaml
from ..windows.order import uniform
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
    """Replaces words of a text by synonyms. `digest` changes with the content of the table.

    Raises:
        UserError: the table does not exist or contains no words, or WordNet is not installed.
    """

    def __init__(self, source: str) -> None:
        if source == WORDNET:
            self._look, self.digest = wordnet()
            return
        table = read_table(user_path(source))
        self._look = lambda word: table.get(word, ())
        self.digest = hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest()

    def replace(self, text: str, share: float, key: int, is_known: Callable[[str], bool]) -> str:
        """Replace `share` of the words that have a synonym, as `key` chooses.

        Only synonyms that the tokenizer knows are used, since the model could learn nothing from unknown ones;
        `is_known` gets each with the space before it. A capital stays a capital.
        """
        words = list(_WORD.finditer(text))
        chance, choice = uniform(len(words), key), uniform(len(words), key + 1)
        pieces, done = [], 0
        for match, drawn, which in zip(words, chance, choice, strict=True):
            if drawn >= share:
                continue
            before = text[match.start() - 1 : match.start()]
            space = before if before == " " else ""
            usable = [
                fitted for one in self._look(match[0].lower()) if is_known(space + (fitted := like(one, match[0])))
            ]
            if usable:
                pieces += [text[done : match.start()], usable[int(which * len(usable))]]
                done = match.end()
        return "".join([*pieces, text[done:]])


def like(word: str, model: str) -> str:
    """Write `word` with the capitals of `model`."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a table: word, in small letters -> its synonyms.

    A .tsv has a word and its synonyms on each line, with tabs between; .json and .yaml hold an object of lists.

    Raises:
        UserError: the file cannot be read, or does not hold such a table.
    """
    rows: Iterable[tuple[Any, Any]]
    if path.suffix == ".tsv":
        text = io.StringIO(read_setting("synonyms", path), newline="")
        lines = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(row[0], row[1:]) for row in lines if row and not row[0].startswith("#")]
    else:
        content = read_values("synonyms", path)
        if not isinstance(content, dict):
            raise UserError(
                f"{path} holds a {type(content).__name__}, expected an object such as {{big: [large, huge]}}"
            )
        rows = list(content.items())
    table: dict[str, tuple[str, ...]] = {}
    for word, synonyms in rows:
        listed = [synonyms] if isinstance(synonyms, str) else synonyms
        if not isinstance(word, str) or not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise UserError(f"{path}: {word!r} has {synonyms!r}, expected a word and its synonyms")
        others = tuple(one.strip() for one in listed if one.strip() and one.strip() != word)
        if others:
            table[word.strip().lower()] = others
    if not table:
        raise UserError(f"{path} holds no synonyms; expected lines such as: big, a tab, large, a tab, huge")
    return table


def read_values(setting: str, path: Path) -> Any:
    """Read the value in a .json or .yaml file that `data.augment` names under `setting`.

    Raises:
        UserError: the file cannot be read, or is no JSON or YAML.
    """
    if path.suffix not in (".json", ".yaml", ".yml", ".tsv", ".txt"):
        raise UserError(f"{path} has the extension {path.suffix or '(none)'!r}; expected .json or .yaml, .tsv or .txt")
    text = read_setting(setting, path)
    try:
        return json.loads(text) if path.suffix == ".json" else load_yaml(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from None


def read_setting(setting: str, path: Path) -> str:
    """Read a text file that `data.augment` names under `setting`.

    Raises:
        UserError: the file cannot be read or is not text; the message names the setting.
    """
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(f"data.augment.{setting}: {error}") from None


def wordnet() -> tuple[Lookup, str]:
    """Look up lemmas of all synsets of a word (EDA), and name the release of WordNet. Nothing is fetched.

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
