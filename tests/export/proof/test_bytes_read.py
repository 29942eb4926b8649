"""The proof by bytes of weights that our operators read only what a token chose, and that it finds more."""

from pathlib import Path
from typing import Any

import pytest
from support.cases import slowly_all
from support.operators.our_library import needs_library
from support.runs import write_run
from support.skipping_models import SKIPPING

from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof import bytes_read
from adaptive_lm.export.proof.bytes_read import BytesProof, packed_bytes_of, prove_bytes
from adaptive_lm.export.proof.judge import points
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.library import load_library

pytestmark = needs_library
TOKENS = 9
KINDS: dict[str, dict[str, Any]] = SKIPPING | {
    "exit router": {"depth": {"exit_layers": [0, 1], "exit_criterion": "router"}},
    "dense": {"ffn": {"routing": "dense", "dim": 40}, "tie_embeddings": True},
    "wide heads": {"heads": {"routing": "top_p", "heads_per_token": 2}, "head_dim": 64, "dim": 96},
    "shared heads": {"heads": {"routing": "top_k", "shared_heads": 1, "heads_per_token": 2}, "head_dim": 24},
    **{mixer: {"mixers": mixer} for mixer in ("retnet", "mamba2", "gated_delta", "rwkv7")},
    "hybrid": {
        "mixers": ["rwkv7", "attention", "gated_delta"],
        "recurrence": {"head_dim": 24, "rank": 40},
        "heads": {"routing": "top_p", "heads_per_token": 2},
        "depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]},
    },
}


def session_of(kind: str, precision: Precision, folder: Path) -> tuple[Source, Session]:
    source = read(write_run(folder / "runs" / "tiny", **KINDS[kind]))
    (folder / "model").mkdir()
    manifest = write_files(source, folder / "model", Precisions.of(precision), ["cpu"])
    return source, Session(folder / "model", manifest, device="cpu", target="cpu", threads=1, verify=False)


def proof_of(source: Source, session: Session, library: Any) -> BytesProof:
    ids = source.heldout_ids(TOKENS)[0].tolist()
    return prove_bytes(session, library, source.config, ids, list(points(source).values()))


@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["int4", "fp32", "int8", "bf16"]))
def test_the_bytes_read_are_those_of_what_each_token_chose(tmp_path: Path, kind: str, precision: Precision) -> None:
    source, session = session_of(kind, precision, tmp_path)
    proof = proof_of(source, session, load_library())
    assert proof.failures == []
    assert proof.tokens == TOKENS
    assert proof.report()["passed"] is True
    assert proof.line().endswith("as the model reports")
    if kind not in ("dense", "top_k", "exit router"):  # exits are checked there beside every layer
        assert 0 < proof.read < proof.dense


def test_heads_of_whole_groups_cost_what_the_manifest_states_for_a_head(tmp_path: Path) -> None:
    source, session = session_of("wide heads", "int4", tmp_path)
    target, config = session.manifest.targets["cpu"], source.config
    limits = points(source)["trained"]
    sequence = session.sequence(Thresholds(**{name: values.numpy() for name, values in limits.given().items()}))
    for token in source.heldout_ids(TOKENS)[0].tolist():
        step = sequence.step(token)
        routes, usage = step.routes, step.usage
        assert routes.selected_heads is not None
        number = int(routes.selected_heads.sum())
        stated = packed_bytes_of(target, config, routes)
        others = usage.executed_bytes - stated  # cache, routers
        layers = [layer for i, layer in enumerate(target.costs.weight_bytes.layers) if routes.layers_run[i, 0]]
        keys = sum(
            layer.attention_per_key * routes.keys[i, 0]
            for i, layer in enumerate(target.costs.weight_bytes.layers)
            if routes.layers_run[i, 0]
        )
        routers = sum(layer.router for layer in layers) + sum(
            layer.depth_router
            for i, layer in enumerate(target.costs.weight_bytes.layers)
            if routes.exit_layer[0] not in range(i)
        )
        assert number > 0
        assert others == pytest.approx(keys + routers, rel=1e-12)


class Hungry:
    """A library that says that each token read 64 bytes more."""

    def __init__(self) -> None:
        self.calls = 0

    def bytes_read(self) -> int:
        self.calls += 1
        return load_library().bytes_read() + 64 * self.calls


def test_a_byte_too_much_fails_the_proof(tmp_path: Path) -> None:
    proof = proof_of(*session_of("none", "int8", tmp_path), Hungry())
    assert len(proof.failures) == TOKENS
    assert "bytes of weights read, the model reports use of" in proof.failures[0]
    assert proof.line().endswith("NOT as the model reports")
    assert proof.report()["passed"] is False


def test_an_expert_that_the_usage_leaves_out_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = bytes_read.packed_bytes_of

    def without_one(target: Any, config: Any, routes: Any) -> int:
        routes.selected_experts[0, 0, routes.selected_experts[0, 0].argmax()] = False
        return true(target, config, routes)

    monkeypatch.setattr(bytes_read, "packed_bytes_of", without_one)
    assert proof_of(*session_of("shared", "fp32", tmp_path), load_library()).failures
