"""The graphs of models of others compute what transformers computes, up to four times the original context."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.foreign.folders import LENGTH, MODELS, random_ids, write_folder
from support.graphs.bare_graph import Graph, Sequences
from support.operators.our_library import needs_library

from adaptive_lm.export.cuda.transformer import build as build_cuda
from adaptive_lm.export.fused.transformer import build as build_fused
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.source import weights_of
from adaptive_lm.runtime.format.manifest import Precisions
from adaptive_lm.train.importing.heldout import loaded
from adaptive_lm.train.importing.importer import read_foreign

pytest.importorskip("transformers")

TOLERANCE = 1e-4
"""Largest difference of logits as a share of their spread."""


@needs_library
@pytest.mark.parametrize("name", MODELS)
def test_every_graph_of_a_family_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_folder(tmp_path, name)
    ours = loaded(read_foreign(tmp_path, lambda _what, _done, _total: None)).eval()
    config, weights, limits = ours.config, weights_of(ours), ours.default_thresholds()
    ids = random_ids(4 * LENGTH)
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits.numpy()
    spread = expected.max() - expected.min()
    protos = {
        "portable": build(config, weights),
        "cpu": build_fused(config, weights, Precisions.of("fp32")),
        "cuda": build_cuda(config, weights),
    }
    for target, proto in protos.items():
        out = Sequences(Graph(proto, config), capacity=4 * LENGTH).run(ids.numpy(), limits)
        assert np.abs(out.logits - expected).max() < TOLERANCE * spread, target
