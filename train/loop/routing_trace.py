"""What a fixed text uses as training goes on: small snapshots in the run's folder, for saturation (`adaptive inspect`).

`routing/step-NNNNNN.npz` has, for each kind that routers choose (experts, heads), over the same held-out tokens:

    KIND.layers  (L,)       the layers that have such a router
    KIND.ranked  (L, N, U)  the units of each token, the most probable first; shared heads are no part of it
    KIND.used    (L, N)     how many of them, from the first on, it used; 0 where it skipped the layer

A checkpoint that could be asked the same later would weigh a thousand times as much: routers say nothing without the
model below them. L layers, N tokens, U units.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...contract.files import write_whole
from ..config.run_config import RunConfig
from ..data.batches import Batch
from ..data.corpus import Corpus
from ..model.transformer import Transformer
from ..parallel.world import World
from ..system.device import autocast

FOLDER = "routing"
TOKENS = 512
"""Of the held-out text: a share of them is known to within 0.02 or so."""


class RoutingTrace:
    """Takes the snapshots of one run, `trainer.routing_snapshots` at most; beyond, those whose neighbours are
    closest in time are forgotten, never the first and the last.

    Nothing is drawn and nothing in the model changes, so a run trains the same with it. A snapshot that cannot be
    written is said once, and no more are taken.
    """

    def __init__(
        self, run: Path, corpus: Corpus, config: RunConfig, step: int, say: Callable[[str], None], world: World
    ) -> None:
        """`step` is the one the run goes on from: snapshots behind it are of steps that were lost."""
        self.folder, self._say, self._most = run / FOLDER, say, config.trainer.routing_snapshots
        windows = corpus.val_windows(config.sequence_length, config.trainer.batch_size, TOKENS)
        self._windows = list(windows) if self._most else []
        self._writes = world.is_first
        for path in self.snapshots() if self._writes else ():
            if step_of(path) > step:
                path.unlink(missing_ok=True)

    def snapshots(self) -> list[Path]:
        """Those taken so far, by step."""
        found = [path for path in self.folder.glob("step-*.npz") if path.stem[5:].isdigit()]
        return sorted(found, key=step_of)

    def take(self, model: Transformer, step: int, precision: str) -> None:
        """The snapshot of `step`, unless the model has no router that chooses among units; every rank must call it."""
        if not self._windows:
            return
        arrays = routing_of(model, self._windows, precision)
        if not arrays:
            self._windows = []
        if not arrays or not self._writes:
            return
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        try:
            self.folder.mkdir(exist_ok=True)
            write_whole(self.folder / f"step-{step:06d}.npz", content.getvalue())
            kept = self.snapshots()
            while len(kept) > max(self._most, 2):
                steps = [step_of(path) for path in kept]
                gaps = [steps[i + 1] - steps[i - 1] for i in range(1, len(steps) - 1)]
                kept.pop(1 + gaps.index(min(gaps))).unlink(missing_ok=True)
        except OSError as error:
            self._writes = False
            self._say(
                f"warning: cannot write {self.folder}: {error.strerror}; saturation will lack the rest of the run"
            )


def step_of(path: Path) -> int:
    return int(path.stem[5:])


@torch.no_grad()
def routing_of(model: Transformer, windows: Sequence[Batch], precision: str) -> dict[str, NDArray[Any]]:
    """The arrays of a snapshot over the scored tokens of `windows`; empty where nothing is chosen."""
    device = model.embedding.weight.device
    shared = model.config.heads.shared_heads
    found: dict[str, dict[int, list[tuple[Tensor, Tensor]]]] = {"experts": {}, "heads": {}}
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if device.type == "cpu" else contextlib.nullcontext():
            for window in windows:
                ids, scored = torch.from_numpy(window.ids).to(device), torch.from_numpy(window.loss_mask).flatten()
                with autocast(device, precision):
                    out = model(ids)
                for l, layer in enumerate(out.routing):
                    chosen = {}
                    if layer.routes is not None and layer.routes.router_probs.shape[-1] > 1:
                        chosen["experts"] = (layer.routes.router_probs, layer.routes.selected_experts, 0)
                    if layer.heads is not None:
                        chosen["heads"] = (layer.heads.router_probs, layer.heads.selected_heads[:, shared:], shared)
                    for kind, (probs, selected, first) in chosen.items():
                        ranked = probs.sort(dim=-1, descending=True, stable=True).indices + first  # (N, U)
                        used = (selected & layer.runs[:, None]).sum(-1)  # (N,)
                        found[kind].setdefault(l, []).append((ranked.cpu()[scored], used.cpu()[scored]))
    finally:
        model.train(training)
    arrays: dict[str, NDArray[Any]] = {}
    for kind, layers in found.items():
        if layers:
            ranked = torch.stack([torch.cat([one for one, _ in parts]) for parts in layers.values()]).numpy()
            used = torch.stack([torch.cat([one for _, one in parts]) for parts in layers.values()]).numpy()
            width = np.uint8 if ranked.max() < 256 else np.uint16
            arrays[f"{kind}.layers"] = np.array(list(layers), np.int64)
            arrays[f"{kind}.ranked"] = ranked.astype(width)
            arrays[f"{kind}.used"] = used.astype(np.uint16)
    return arrays
