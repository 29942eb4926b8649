"""One cell of the decode benchmark: a model, a precision and a number of threads, in a process of its own.

    cd benchmarks && python -m decoding.cell SPEC.json [PARTICIPANT]

With the name of a participant, its memory and loading are measured, in a process that it has to itself.
"""

import gc
import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from adaptive_lm.runtime.generation.engine import load
from adaptive_lm.runtime.measuring.nodes import nodes_per_token
from decoding.entrants import Setting, entrants
from decoding.participants import PACKAGES, Ours
from decoding.race import PROMPT, Lane, Race, Row, Spec, tokens
from processes.memory import forget_peak, peak


def measure(spec: Spec) -> Row:
    """Measure everything of a cell."""
    files = spec.files
    everyone = entrants(files, spec.precision, spec.threads)
    race = Race(spec, files.model)
    most = (spec.turn + 1) * (spec.rounds + 1)

    def room(context: int) -> Setting:
        return Setting(max(context, most) + most, spec.experts)

    result: Row = {"decode": {}, "prefill": {}, "experts": {}, "layers": {}, "batch": {}}
    for context in spec.contexts:
        _say(spec, f"decode at {context}")
        result["decode"][context] = race.decode([Lane(e.name, e, room(context)) for e in everyone], context)
    for count in spec.prefills:
        _say(spec, f"prefill of {count}")
        lanes = [Lane(e.name, e, Setting(count + 8, spec.experts)) for e in everyone]
        result["prefill"][count] = race.prefill(lanes, count)
    if files.size.experts > 1:
        _say(spec, "experts")
        numbers = [count for count in (8, 4, 2, 1) if count <= files.size.experts]
        lanes = [
            Lane(f"{e.name}/{count}", e, room(PROMPT)._replace(experts=count))
            for e in everyone
            if e.sets_experts
            for count in numbers
        ]
        result["experts"] = race.decode(lanes, PROMPT)
    half = files.size.layers // 2
    lanes = [
        Lane(f"{e.name}/{skipped}", e, room(PROMPT)._replace(skipped=skipped))
        for e in everyone
        if e.skips_layers
        for skipped in (0, half)
    ]
    if lanes:
        _say(spec, "layers")
        result["layers"] = race.decode(lanes, PROMPT)
    for batch in spec.batches:
        lanes = [Lane(e.name, e, room(PROMPT)._replace(batch=batch)) for e in everyone if e.most_batch >= batch]
        if batch > 1 and lanes:
            _say(spec, f"batch of {batch}")
            result["batch"][batch] = race.decode(lanes, PROMPT)
    return result


def alone(spec: Spec, name: str) -> Row:
    """Measure the memory and the loading of one entrant, which has this process to itself."""
    entrant = next(e for e in entrants(spec.files, spec.precision, spec.threads) if e.name == name)
    importlib.import_module(PACKAGES.get(name, "onnxruntime"))
    if name == "transformers":
        importlib.import_module("transformers.models.auto.modeling_auto")
    gc.collect()
    before = forget_peak()
    begin = time.perf_counter()
    participant = entrant.open(Setting(2 * PROMPT, spec.experts))
    loaded = time.perf_counter()
    participant.begin(tokens(PROMPT))
    first = time.perf_counter()
    for token in tokens(16):
        participant.step(token)
    result: Row = {
        "load_seconds": loaded - begin,
        "first_token_seconds": first - begin,
        "memory_bytes": peak() - before,
    }
    if isinstance(participant, Ours):
        kernel, folder, target = participant.session.kernel, participant.folder, participant.session.target
        participant.close()
        engine = load(folder, device="cpu", target=target, threads=1, verify=False)
        result |= {"kernel": kernel, "nodes": nodes_per_token(engine, folder)}
    return result


def _say(spec: Spec, what: str) -> None:
    print(f"{spec.model} {spec.precision} {spec.threads} threads: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure the cell of a file, or one entrant of it alone, and print the result as JSON."""
    fields: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    untyped: Any = Spec
    spec: Spec = untyped(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    if spec.core is not None:
        psutil.Process().cpu_affinity([spec.core])
    torch.set_num_threads(spec.threads)
    result = measure(spec) if len(sys.argv) < 3 else alone(spec, sys.argv[2])
    print(json.dumps({"spec": asdict(spec), **result}))


if __name__ == "__main__":
    main()
