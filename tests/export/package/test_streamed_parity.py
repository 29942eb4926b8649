"""Exports of streamed models and of checkpoints in half precision decide as torch does, over hundreds of tokens.

Torch is a model in memory that reads the checkpoint itself, not the one that streams, which also judges the export.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.operators.our_library import needs_library
from support.runs import EVERY_MECHANISM, store_in, write_run

from adaptive_lm.export import streaming
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.proof import scratch
from adaptive_lm.export.proof.judge import points, rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE, Comparison, compare
from adaptive_lm.export.proof.passes import prompt_pass, token_pass, torch_pass
from adaptive_lm.export.source import read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint

MODELS: dict[str, dict[str, Any]] = {"plain": {}, "every mechanism": EVERY_MECHANISM}
TOKENS = 512
"""Tokens compared as prompts at each of three sets of thresholds; half of them also one at a time."""
WINDOW = 256


@dataclass(frozen=True)
class Form:
    """How the checkpoint is stored, whether it is streamed, and in which precision it is exported."""

    stored: torch.dtype
    streamed: bool
    precision: Precision = "fp32"


FORMS = {
    "streamed": Form(torch.float32, streamed=True),
    "streamed as bf16": Form(torch.float32, streamed=True, precision="bf16"),
    "streamed from bfloat16": Form(torch.bfloat16, streamed=True),
    "streamed from float16": Form(torch.float16, streamed=True),
    "in memory from bfloat16": Form(torch.bfloat16, streamed=False),
    "in memory from float16": Form(torch.float16, streamed=False),
}


def torch_of(run: Path) -> Transformer:
    """Return the model of a run in memory, in float32."""
    checkpoint = load_checkpoint(run)
    model = Transformer(checkpoint.config.model).eval()
    model.load_state_dict(checkpoint.model_state)
    return model


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_every_decision_of_hundreds_of_tokens_is_that_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, form: Form
) -> None:
    run = write_run(tmp_path / "runs" / "tiny", **MODELS[model])
    if form.stored != torch.float32:
        store_in(run, form.stored)
    precisions = Precisions.of(form.precision)
    with monkeypatch.context() as patch:
        if form.streamed:
            patch.setattr(streaming, "RESIDENT", 0)
            patch.setattr(streaming, "ROWS", 2**10)  # eight rows of 32
            patch.setattr(scratch, "LARGE", 1)
        exported = run_export(str(run), tmp_path / "model", precisions, threads=1)
    assert exported.report["passed"] is True

    source, manifest = read(run), Manifest.read(exported.folder)
    levels = points(source)
    assert list(levels) == ["trained", "everything", "little"]
    for name, own in levels["trained"].given().items():
        np.testing.assert_allclose(getattr(manifest.thresholds, name), own.numpy(), rtol=0, atol=1e-6, err_msg=name)
    windows = source.heldout_windows(TOKENS, WINDOW)[:, None]
    assert windows.numel() == TOKENS
    for target in ("portable", "cpu"):
        judge = torch_of(run)
        if form.precision != "fp32":
            judge = rounded_model(judge, target, precisions)
        session = Session(exported.folder, manifest, device="cpu", target=target, threads=1)
        prompts, tokens = Comparison(), Comparison()
        for thresholds in levels.values():
            expected = [torch_pass(judge, window, thresholds) for window in windows]
            for window, one in zip(windows, expected, strict=True):
                compare(prompts, one, prompt_pass(session, window, thresholds))
            compare(tokens, expected[0], token_pass(session, windows[0], thresholds))
        assert (prompts.tokens, tokens.tokens) == (3 * TOKENS, 3 * WINDOW)
        for comparison in (prompts, tokens):
            assert comparison.passes(TOLERANCE["fp32"]), comparison
            assert (comparison.wrong_decisions, comparison.flipped) == (0, 0), "every decision, a near tie too"
