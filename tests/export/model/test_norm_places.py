"""Whole exports of models with other norms, parallel parts, learned positions, scale and softcap."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cases import slowly_all
from support.operators.our_library import needs_library
from support.runs import write_run

from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.proof.passes import prompt_pass
from adaptive_lm.export.source import read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions

KINDS: dict[str, dict[str, Any]] = {
    "post": {"norm_place": "post", "heads": {"routing": "top_p"}, "logits_softcap": 4.0},
    "sandwich": {"norm": "layer", "norm_place": "sandwich", "tie_embeddings": True, "embedding_scale": 6.0},
    "parallel": {"norm": "layer", "parallel_residual": True, "attention": {"positions": "learned"}},
}


@needs_library
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["fp32", "int8"]))
def test_an_export_passes_its_whole_check(kind: str, precision: Precision, tmp_path: Path) -> None:
    """Decisions and logits of both targets, bytes read, skipped work, prompt against tokens, greedy continuation."""
    run = write_run(tmp_path / "runs" / "tiny", **KINDS[kind])
    exported = run_export(str(run), tmp_path / "model", Precisions.of(precision), threads=1)
    assert exported.report["passed"]
    assert exported.report["targets"]["cpu"]["passed"]
    cap = KINDS[kind].get("logits_softcap")
    if cap is None:
        return
    manifest, source = Manifest.read(exported.folder), read(run)
    for target in ("portable", "cpu"):
        session = Session(exported.folder, manifest, device="cpu", target=target, threads=1)
        logits = prompt_pass(session, source.heldout_ids(64), source.thresholds()).logits
        assert 0.5 * cap < np.abs(logits).max() <= cap
