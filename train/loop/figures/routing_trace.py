"""Snapshots of the routing of a fixed text during training, in the run's folder, for `adaptive inspect`.

`routing/step-NNNNNN.npz` has, for each kind that routers choose (experts, heads), over the same held-out tokens:

    KIND.layers  (L,)       the layers that have such a router
    KIND.ranked  (L, N, U)  the units of each token, the most probable first; without shared heads
    KIND.used    (L, N)     how many of them, from the first on, the token used; 0 where it skipped the layer

A checkpoint that holds the same information would be a thousand times as large: routers cannot be evaluated without
the model below them. L layers, N tokens, U units.
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

from ....contract.files import write_whole
from ...data.windows.batches import Batch
from ...model.transformer import Transformer
from ...parallel.world import World
from ...system.device import autocast

FOLDER = "routing"
TOKENS = 512
"""Held-out tokens of a snapshot: a share of them is known to within about 0.02."""


class RoutingTrace:
    """Takes the snapshots of one run.

    When there are more than `limit`, those with the closest neighbours in time are deleted, never the first or the
    last. Nothing is drawn and nothing in the model changes, so a run trains the same without it. After a snapshot that
    cannot be written there is one warning, and no more snapshots.
    """

    write = staticmethod(write_whole)
    """Writes a file, whole or not at all."""

    def __init__(
        self,
        run: Path,
        windows: Sequence[Batch],
        limit: int,
        step: int,
        log: Callable[[str], None],
        world: World,
    ) -> None:
        """Delete the snapshots of steps that are lost and trained again.

        Args:
            run: The folder of the run.
            windows: The text, (B, T) each; none takes no snapshots.
            limit: The most snapshots to keep.
            step: The step that the run resumes from.
            log: Shows a warning.
            world: The ranks; only the first one writes.
        """
        self.folder, self._log, self._limit = run / FOLDER, log, limit
        self._windows = windows
        self._writes = world.is_first
        for path in self.snapshots() if self._writes else ():
            if step_of(path) > step:
                path.unlink(missing_ok=True)

    def snapshots(self) -> list[Path]:
        """Return the files of the snapshots, by step."""
        paths = [path for path in self.folder.glob("step-*.npz") if path.stem[5:].isdigit()]
        return sorted(paths, key=step_of)

    def take(self, model: Transformer, step: int, precision: str) -> None:
        """Take the snapshot of `step`, if the model has a router that chooses among units; every rank must call it."""
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
            self.write(self.folder / f"step-{step:06d}.npz", content.getvalue())
            paths = self.snapshots()
            while len(paths) > max(self._limit, 2):
                steps = [step_of(path) for path in paths]
                gaps = [steps[i + 1] - steps[i - 1] for i in range(1, len(steps) - 1)]
                paths.pop(1 + gaps.index(min(gaps))).unlink(missing_ok=True)
        except OSError as error:
            self._writes = False
            self._log(
                f"warning: cannot write {self.folder}: {error.strerror}; adaptive inspect will not show the saturation "
                "of the rest of the run"
            )


def step_of(path: Path) -> int:
    """Return the step of a snapshot."""
    return int(path.stem[5:])


@torch.no_grad()
def routing_of(model: Transformer, windows: Sequence[Batch], precision: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a snapshot over the scored tokens of `windows`; none if the model chooses nothing."""
    device = model.embedding.weight.device
    shared = model.config.heads.shared_heads
    layers_of: dict[str, dict[int, list[tuple[Tensor, Tensor]]]] = {"experts": {}, "heads": {}}
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
                        chosen["experts"] = (layer.routes.router_probs, layer.routes.selected, 0)
                    if layer.heads is not None:
                        chosen["heads"] = (layer.heads.router_probs, layer.heads.selected_heads[:, shared:], shared)
                    for kind, (probs, selected, first) in chosen.items():
                        ranked = probs.sort(dim=-1, descending=True, stable=True).indices + first  # (N, U)
                        used = (selected & layer.runs[:, None]).sum(-1)  # (N,)
                        layers_of[kind].setdefault(l, []).append((ranked.cpu()[scored], used.cpu()[scored]))
    finally:
        model.train(training)
    arrays: dict[str, NDArray[Any]] = {}
    for kind, layers in layers_of.items():
        if layers:
            ranked = torch.stack([torch.cat([one for one, _ in parts]) for parts in layers.values()]).numpy()
            used = torch.stack([torch.cat([one for _, one in parts]) for parts in layers.values()]).numpy()
            width = np.uint8 if ranked.max() < 256 else np.uint16
            arrays[f"{kind}.layers"] = np.array(list(layers), np.int64)
            arrays[f"{kind}.ranked"] = ranked.astype(width)
            arrays[f"{kind}.used"] = used.astype(np.uint16)
    return arrays
