"""One ONNX Runtime session of one model, and the sequence that it computes.

L layers, T tokens, E experts, V vocabulary.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError, WrongUsageError
from ...contract.files import require_utf8_path
from ..dial import Dial, Thresholds, resolve
from ..format.files import check_digest, checking_digests
from ..format.manifest import Costs, Manifest
from .binding import Pass, expected_names
from .cost import Meter, Usage
from .kv_cache import ROUND_CAPACITY, Cache
from .providers import choose_device
from .routes import Routes, joined
from .targets import choose_target

SPIN_MICROSECONDS = 100
"""Time for which a thread of our operators waits for work before it sleeps (docs/decisions/0025)."""
SMALL_BYTES = 128 * 2**20
"""Weights up to which one thread decodes faster than two (docs/decisions/0005)."""


@dataclass(frozen=True)
class Step:
    """The result of one pass."""

    logits: NDArray[np.float32]
    """(num_logits, V): logits of the last tokens. The array is not written again."""
    routes: Routes
    """The experts, heads and layers that every token of the pass used."""
    meter: Meter
    """Computes the cost of `routes`."""

    @cached_property
    def usage(self) -> Usage:
        """Usage of the last token, from which the next is chosen. Computed on first access."""
        return self.meter.usage(self.routes)


class Session:
    """Runs the graph: `prefill` the prompt, `step` token by token, then `reset` for the next sequence.

    Buffers are allocated and bound when a sequence begins, for its capacity, and stay while it grows.

    Args:
        folder: The folder of the exported model.
        manifest: The manifest of the model; None reads it.
        device: "auto" (CUDA where it loads), "cpu" or "cuda".
        target: Which graph of the model to run: "auto" (that of our operators where they work), "portable", "cpu" or
            "cuda".
        threads: Threads of one operator, at least 1; None takes `suitable_threads`.
        capacity: Tokens that the caches hold at first; None takes the whole context.
        verify: Whether to compare the graph and its weights with their digests.

    Raises:
        UserError: the model is missing, damaged, or does not fit its manifest; or CUDA or a target is requested and
            cannot be used here.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        manifest: Manifest | None = None,
        *,
        device: str = "auto",
        target: str = "auto",
        threads: int | None = None,
        capacity: int | None = None,
        verify: bool = True,
    ) -> None:
        import onnxruntime  # takes 90 ms, which `--help` should not pay

        if threads is not None and threads < 1:
            raise WrongUsageError(f"found threads {threads}, expected at least 1")
        folder = Path(folder)
        self.manifest = manifest or Manifest.read(folder, verify=False)
        self.device = choose_device(device)
        self.threads = threads or suitable_threads(self.manifest)
        self._ort = onnxruntime
        self._target = choose_target(self.manifest, target, self.device.name)
        self._session = self._verified(folder) if verify else self._open(folder / self._target.graph)
        self._meter = Meter(self.manifest, self._target.costs)
        self._position = 0
        self.reset(capacity)
        self.set_thresholds(resolve(self.manifest, Dial()))

    def _verified(self, folder: Path) -> Any:
        """Open the graph, whose digest is compared before, and that of its weights meanwhile: they can be large."""
        digests = {folder / name: info.sha256 for name, info in self.manifest.files.items()}
        graph, data = folder / self._target.graph, folder / self._target.data
        check_digest(graph, digests[graph])
        with checking_digests({data: digests[data]} if data in digests else {}):
            return self._open(graph)

    def _open(self, path: Path) -> Any:
        require_utf8_path(path)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False  # planned for fixed shapes; ours change with the prompt
        # A thread that spins while it waits takes the core from a thread that has work: on two busy cores that doubled
        # the time of a token of the portable graph (docs/decisions/0005). Ours wait for each other a few microseconds.
        ours = self._target.library is not None
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if ours else "0")
        if ours:
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        options.log_severity_level = 3  # errors; they come as exceptions too
        if self._target.library is not None:
            self._target.library.register(options)
        try:
            session = self._ort.InferenceSession(str(path), options, providers=list(self.device.providers))
        except Exception as error:  # onnxruntime raises many classes without a common base
            raise UserError(f"{path} does not load: {error}; export the model again") from error
        names = ({x.name for x in session.get_inputs()}, {x.name for x in session.get_outputs()})
        expected = expected_names(self.manifest, slots=self._target.name == "cpu")
        if names != expected:
            odd = sorted((names[0] ^ expected[0]) | (names[1] ^ expected[1]))
            raise UserError(f"{path} does not fit its manifest: {', '.join(odd)}; export the model again")
        logits = next(x.shape[-1] for x in session.get_outputs() if x.name == "logits")
        if isinstance(logits, int) and logits != self.manifest.model.vocab_size:
            raise UserError(
                f"{path} gives logits for a vocabulary of {logits}, its manifest says "
                f"{self.manifest.model.vocab_size}; export the model again"
            )
        return session

    @property
    def onnxruntime_version(self) -> str:
        """Version of the ONNX Runtime that is loaded."""
        return str(self._ort.__version__)

    @property
    def target(self) -> str:
        """The graph that runs: `portable`, `cpu` or `cuda`."""
        return self._target.name

    @property
    def kernel(self) -> str | None:
        """The instruction set of our operators; None where ONNX Runtime's own operators run."""
        return self._target.kernel

    @property
    def costs(self) -> Costs:
        """Costs of the graph that runs."""
        return self._target.costs

    @property
    def note(self) -> str | None:
        """Why a faster graph of the model does not run, in one line; None where there is nothing to say."""
        return self._target.note

    @property
    def position(self) -> int:
        """Tokens computed so far."""
        return self._position

    @property
    def capacity(self) -> int:
        """Tokens that the caches can hold."""
        return self.cache.capacity

    def reset(self, capacity: int | None = None) -> None:
        """Begin a new sequence with room for `capacity` tokens (None: the whole context). Thresholds stay.

        Raises:
            UserError: the capacity is larger than the model's context.
        """
        context = self.manifest.model.context_length
        wanted = context if capacity is None else capacity
        if not 1 <= wanted <= context:
            raise UserError(f"found {wanted} tokens, this model holds 1 to {context}; shorten the text")
        room = min(-(-wanted // ROUND_CAPACITY) * ROUND_CAPACITY, context)
        cache: Cache | None = getattr(self, "cache", None)
        if cache is None or cache.capacity != room:
            fresh = Cache(self._ort, self.manifest, self.device.name, room, self._target.kv)
            if cache is not None:
                for name, array in fresh.inputs().items():
                    array[:] = cache.inputs()[name]
            self.cache = fresh
            self.decode = Pass(self._ort, self._session, self.manifest, fresh, 1, 1)
        self.cache.lengths[:] = 0
        self._position = 0

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Use these thresholds from the next pass on."""
        self.cache.router_top_p[:] = thresholds.router_top_p[:, None]
        self.cache.depth_threshold[:] = thresholds.depth_threshold[:, None]
        self.cache.exit_threshold[:] = thresholds.exit_threshold[:, None]
        self.cache.head_top_p[:] = thresholds.head_top_p[:, None]
        self._exits_open = thresholds.exit_threshold < 1

    def prefill(self, ids: Sequence[int], num_logits: int = 1) -> Step:
        """Compute `ids` after the tokens in the caches.

        This takes one pass, or several where the cache of a layer with a window is too small for one; the result is the
        same.

        Args:
            ids: Token ids, at least one.
            num_logits: Tokens, from the last backwards, whose logits are returned; 1 to len(ids).

        Raises:
            UserError: there are no ids, an id is outside the vocabulary, or the caches have too little room.
        """
        self._check(ids)
        if not 1 <= num_logits <= len(ids):
            raise ValueError(f"found num_logits {num_logits}, expected 1 to {len(ids)}")
        if len(ids) == 1:
            return self._run(self.decode, ids)
        longest = self.cache.longest_pass(self._position, self._position + len(ids))
        parts: list[Step] = []
        graphs: dict[tuple[int, int], Pass] = {}
        for begin in range(0, len(ids), longest):
            part = ids[begin : begin + longest]
            wanted = begin + len(part) - (len(ids) - num_logits)  # tokens so far whose logits are returned
            shape = (len(part), min(max(wanted, 1), len(part)))  # the graph gives the logits of at least one token
            if shape not in graphs:
                graphs[shape] = Pass(self._ort, self._session, self.manifest, self.cache, *shape)
            step = self._run(graphs[shape], part, again=len(ids) > longest)
            parts.append(step if wanted > 0 else replace(step, logits=step.logits[:0]))
        return parts[0] if len(parts) == 1 else self._joined(parts)

    def _joined(self, parts: Sequence[Step]) -> Step:
        logits = np.concatenate([part.logits for part in parts])
        return Step(logits, joined([part.routes for part in parts]), self._meter)

    def step(self, token: int) -> Step:
        """Compute one token; its logits, (1, V), choose the next one.

        Raises:
            UserError: as in `prefill`.
        """
        self._check((token,))
        return self._run(self.decode, (token,))

    def _check(self, ids: Sequence[int]) -> None:
        if not len(ids):
            raise UserError("found no tokens to compute, expected at least one; give a text")
        if min(ids) < 0 or max(ids) >= self.manifest.model.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.manifest.model.vocab_size)
            raise UserError(f"found token {wrong}, this model has 0 to {self.manifest.model.vocab_size - 1}")
        if self._position + len(ids) > self.capacity:
            raise UserError(
                f"found {self._position + len(ids)} tokens, there is room for {self.capacity}; "
                "call reset() with more capacity"
            )

    def _run(self, graph: Pass, ids: Sequence[int], *, again: bool = True) -> Step:
        """Run `graph` on `ids`. With `again` its arrays will be reused, so the logits are copied."""
        T = len(ids)
        graph.ids[0] = ids
        graph.positions[0] = np.arange(self._position, self._position + T)
        before = self.cache.lengths[:, 0].copy()  # (L,)
        graph.run()
        self.cache.lengths[:] = graph.new_lengths
        self._position += T
        routes = graph.routes(before, self._exits_open)
        return Step(graph.logits[0].copy() if again else graph.logits[0], routes, self._meter)

    @property
    def meter(self) -> Meter:
        """Computes costs by the tables of this model."""
        return self._meter


def suitable_threads(manifest: Manifest, cores: int | None = None) -> int:
    """Return one thread per core, or a single one for a small model, whose operators are too small to split.

    Args:
        manifest: The model.
        cores: Cores to use; None takes `usable_cores`.
    """
    table = manifest.costs.weight_bytes
    H = manifest.model.num_heads
    experts = zip(table.layers, manifest.model.layers, strict=True)
    dense = table.lm_head + sum(
        costs.attention + costs.head * H + costs.expert * layer.num_experts for costs, layer in experts
    )
    return 1 if dense < SMALL_BYTES else cores or usable_cores()


def usable_cores() -> int:
    """Return the number of cores that this process may use: its affinity where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
