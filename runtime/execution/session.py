"""One ONNX Runtime session of one model: its graph, opened and checked."""

import os
from pathlib import Path

from ...contract.errors import UserError, WrongUsageError
from ...contract.files import require_utf8_path
from ..dial import Thresholds
from ..format.files import check_digest, checking_digests
from ..format.manifest import Costs, Manifest
from .batch import Batch
from .graph import Graph, expected_names
from .providers import choose_device
from .sequence import Sequence
from .targets import choose_target
from .usage.cost import Meter

SPIN_MICROSECONDS = 100
"""Time for which a thread of our operators waits for work before it sleeps (docs/decisions/0025)."""
SMALL_BYTES = 128 * 2**20
"""Weights up to which one thread decodes faster than two (docs/decisions/0005)."""


class Session:
    """An opened graph. It holds no text: `batch` or `sequence` makes room for some.

    Args:
        folder: The folder of the exported model.
        manifest: The manifest of the model; None reads it.
        device: "auto" (CUDA where it loads), "cpu" or "cuda".
        target: Which graph of the model to run: "auto" (that of our operators where they work), "portable", "cpu" or
            "cuda".
        threads: Threads of one operator, at least 1; None takes `suitable_threads`.
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
        self._target = choose_target(self.manifest, target, self.device.name, self.device.no_cuda)
        self.graph = self._verified(folder) if verify else self._open(folder / self._target.graph)

    def _verified(self, folder: Path) -> Graph:
        """Open the graph, whose digest is compared before, and that of its weights meanwhile: they can be large."""
        digests = {folder / name: info.sha256 for name, info in self.manifest.files.items()}
        graph, data = folder / self._target.graph, folder / self._target.data
        check_digest(graph, digests[graph])
        with checking_digests({data: digests[data]} if data in digests else {}):
            return self._open(graph)

    def _open(self, path: Path) -> Graph:
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
        if self.device.name == "cuda":
            self._ort.set_default_logger_severity(3)  # its kernels warn there, about ScatterND for instance
        if self._target.library is not None:
            self._target.library.register(options)
        try:
            session = self._ort.InferenceSession(str(path), options, providers=list(self.device.providers))
        except Exception as error:  # onnxruntime raises many classes without a common base
            raise UserError(f"{path} does not load: {error}; export the model again") from error
        names = ({x.name for x in session.get_inputs()}, {x.name for x in session.get_outputs()})
        mixes_sequences = "slots" in names[0]
        expected = expected_names(self.manifest.model, mixes_sequences=mixes_sequences)
        if names != expected:
            odd = sorted((names[0] ^ expected[0]) | (names[1] ^ expected[1]))
            raise UserError(f"{path} does not fit its manifest: {', '.join(odd)}; export the model again")
        logits = next(x.shape[-1] for x in session.get_outputs() if x.name == "logits")
        if isinstance(logits, int) and logits != self.manifest.model.vocab_size:
            raise UserError(
                f"{path} gives logits for a vocabulary of {logits}, its manifest says "
                f"{self.manifest.model.vocab_size}; export the model again"
            )
        meter = Meter(self.manifest, self._target.costs)
        device, kv = self.device.name, self._target.kv
        rebinds = device != "cpu"
        return Graph(self._ort, session, self.manifest, meter, device, kv, mixes_sequences, rebinds)

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
    def file_bytes(self) -> int:
        """Bytes of the files of the graph and its weights."""
        files = self.manifest.files
        return sum(files[name].bytes for name in (self._target.graph, self._target.data) if name in files)

    @property
    def note(self) -> str | None:
        """Why a faster graph of the model does not run, in one line; None where there is nothing to say."""
        return self._target.note

    @property
    def meter(self) -> Meter:
        """Computes costs by the tables of this model."""
        return self.graph.meter

    def batch(self, slots: int = 1, capacity: int | None = None) -> Batch:
        """Make room for `slots` sequences at a time, of up to `capacity` tokens each; None takes the whole context.

        Raises:
            UserError: The capacity exceeds the model's context, or the caches do not fit the free memory.
        """
        return Batch(self.graph, slots, capacity)

    def sequence(self, thresholds: Thresholds | None = None, capacity: int | None = None) -> Sequence:
        """Begin one sequence, in a batch of its own; see `Batch.join`."""
        return self.batch(1, capacity).join(thresholds)


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
        costs.attention + costs.head * H + costs.expert * layer.candidates for costs, layer in experts
    )
    return 1 if dense < SMALL_BYTES else cores or usable_cores()


def usable_cores() -> int:
    """Return the number of cores that this process may use: its affinity where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
