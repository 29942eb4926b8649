"""Saturation: by hand for a few tokens, and from files that may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_lm.runtime.inspection.saturation import overlap, saturations


def snapshot(run: Path, step: int, ranked: Any, used: Any, kind: str = "experts") -> None:
    ranked, used = np.array(ranked, np.uint8), np.array(used, np.uint16)
    (run / "routing").mkdir(parents=True, exist_ok=True)
    arrays = {f"{kind}.layers": np.arange(len(ranked)) + 1, f"{kind}.ranked": ranked, f"{kind}.used": used}
    np.savez_compressed(run / "routing" / f"step-{step:06d}.npz", **arrays)


LAST = [[[0, 1, 2], [2, 1, 0], [1, 0, 2]]]
USED = [[1, 2, 0]]


def test_the_share_of_the_last_choices_that_an_earlier_moment_makes(tmp_path: Path) -> None:
    """Compare an earlier ranking with the last choices {0}, {2, 1} and none.

    The earlier ranking begins with 1 for the first token, so it has none of {0}. For the second token one of {2, 1} is
    among its two most probable. The number of experts that the earlier step used does not matter.
    """
    snapshot(tmp_path, 5, [[[1, 0, 2], [0, 2, 1], [2, 1, 0]]], [[3, 3, 3]])
    snapshot(tmp_path, 10, [[[0, 2, 1], [1, 2, 0], [2, 1, 0]]], [[1, 1, 1]])
    snapshot(tmp_path, 20, LAST, USED)
    (found,), warnings = saturations(tmp_path)
    assert (found.name, found.steps, found.layers, found.tokens) == ("experts", (5, 10, 20), (1,), 3)
    np.testing.assert_allclose(found.share, [[1 / 3, 1, 1]])
    assert warnings == []
    (until,), _ = saturations(tmp_path, until=10)
    assert until.steps == (5, 10)


def test_chance_is_what_shares_alone_give(tmp_path: Path) -> None:
    """Guess the choices of two routers from the shares of their experts.

    For a router that uses expert 0 for half of the tokens and 1 for the others, half of the guesses are right. For a
    router that always uses 0, all are.
    """
    random = np.random.default_rng(1)
    tokens = np.arange(1000) % 2
    half = np.stack([tokens, 1 - tokens], 1)
    ranked = [half.tolist(), [[0, 1]] * 1000]
    used = [[1] * 1000] * 2
    snapshot(tmp_path, 1, [half[random.permutation(1000)].tolist(), [[0, 1]] * 1000], used)
    snapshot(tmp_path, 2, ranked, used)
    (found,), _ = saturations(tmp_path)
    np.testing.assert_allclose(found.by_chance, [0.5, 1.0], atol=0.03)
    np.testing.assert_allclose(found.share[:, 0], [0.5, 1.0], atol=0.05)


def test_a_layer_that_no_token_runs_has_no_figure() -> None:
    assert np.isnan(overlap(np.array(LAST), np.array(LAST), np.zeros((1, 3), int))).all()


def test_one_snapshot_says_nothing_and_none_is_no_mistake(tmp_path: Path) -> None:
    assert saturations(tmp_path) == ([], [])
    snapshot(tmp_path, 20, LAST, USED)
    assert saturations(tmp_path) == ([], [])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04\x95"])
def test_a_damaged_snapshot_is_named_and_left_out(tmp_path: Path, content: bytes) -> None:
    for step in (5, 20):
        snapshot(tmp_path, step, LAST, USED)
    (tmp_path / "routing" / "step-000010.npz").write_bytes(content)
    (found,), warnings = saturations(tmp_path)
    assert found.steps == (5, 20)
    assert len(warnings) == 1
    assert "step-000010.npz cannot be read" in warnings[0]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    snapshot(tmp_path, 5, LAST, USED)
    snapshot(tmp_path, 20, LAST, USED)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "routing" / "step-000010.npz", **{"experts.layers": objects})
    (found,), warnings = saturations(tmp_path)
    assert found.steps == (5, 20)
    assert "allow_pickle" in warnings[0]
