"""Who can run a model of the decode benchmark in a precision, and what each opens and reads for it."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from adaptive_lm.runtime.format.manifest import Manifest
from decoding.participants import GenAI, LlamaCpp, Ours, Participant, Transformers, missing
from models.files import Files
from models.gguf_file import bytes_per_token
from models.random_weights import SKIPPING, Precision, Size, thresholds_of


class Setting(NamedTuple):
    """What a participant is opened for."""

    capacity: int
    """Most tokens of a sequence."""
    experts: int
    skipped: int | None = None
    """Layers to skip, of the model that has depth routers; None takes the model that has none."""
    batch: int = 1


class Entrant(NamedTuple):
    """A way to run the model."""

    name: str
    open: Callable[[Setting], Participant]
    bytes: Callable[[Setting, Participant, float], float | None]
    """Bytes of weights and cache that a token needs, given the average context; None where that is not counted."""
    most_batch: int = 1
    sets_experts: bool = False
    skips_layers: bool = False


def entrants(files: Files, precision: Precision, threads: int) -> list[Entrant]:
    """List those that have this model in this precision."""
    absent = missing()
    export = files.export(precision)
    targets = ("portable", *Manifest.read(export, verify=False).targets)
    entered = [_ours(files, target, precision, threads) for target in targets]
    for name, peer in (("llama.cpp", _llama), ("genai", _genai), ("transformers", _transformers)):
        if name in absent:
            continue
        try:
            entrant = peer(files, precision, threads)
        except Exception as error:  # of any class: other versions of a peer fail in ways of their own
            print(f"{name} is left out of {files.name} {precision}: {error}", file=sys.stderr, flush=True)
            continue
        entered += [] if entrant is None else [entrant]
    return entered


def _llama(files: Files, precision: Precision, threads: int) -> Entrant:
    path, size = files.gguf(precision), files.size

    def open_(setting: Setting) -> Participant:
        return LlamaCpp(path, size, setting.experts, threads, setting.capacity, setting.batch)

    def bytes_(setting: Setting, _: Participant, context: float) -> float:
        return bytes_per_token(path, setting.experts) + _cache_bytes(size, context, 2)

    return Entrant("llama.cpp", open_, bytes_, most_batch=64, sets_experts=True)


def _genai(files: Files, precision: Precision, threads: int) -> Entrant | None:
    folder = files.genai(precision)
    if folder is None:
        return None
    return Entrant("genai", lambda setting: GenAI(folder, threads, setting.capacity), lambda *_: None)


def _transformers(files: Files, precision: Precision, threads: int) -> Entrant | None:
    if precision != "fp32":
        return None  # its quantisation needs further packages
    folder, size = files.hf(), files.size

    def open_(setting: Setting) -> Participant:
        return Transformers(folder, setting.experts, threads, setting.batch)

    def bytes_(setting: Setting, _: Participant, context: float) -> float:
        return 4.0 * size.weights(setting.experts) + _cache_bytes(size, context, 4)

    return Entrant("transformers", open_, bytes_, most_batch=64)


def _ours(files: Files, target: str, precision: Precision, threads: int) -> Entrant:
    def open_(setting: Setting) -> Participant:
        thresholds = thresholds_of(files.size, setting.experts, setting.skipped or 0)
        folder = files.export(precision, skipping=setting.skipped is not None)
        return Ours(folder, target, threads, setting.capacity, thresholds, setting.batch)

    def bytes_(_: Setting, participant: Participant, __: float) -> float:
        assert isinstance(participant, Ours)
        return participant.bytes_per_token()

    skips = files.name in SKIPPING
    return Entrant(target, open_, bytes_, most_batch=64, sets_experts=True, skips_layers=skips)


def _cache_bytes(size: Size, context: float, width: int) -> float:
    return 2.0 * size.layers * size.kv_heads * size.head_dim * width * context
