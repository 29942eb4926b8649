"""The thresholds of an exported model and its dial, from the controllers of a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import write_run

from adaptive_lm.export.source import Source, read
from adaptive_lm.export.thresholds import TIE_DISTANCE, clear_of, dial
from adaptive_lm.runtime.dial.dial import Dial, resolve
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.train.model import ThresholdTensors


def test_the_dial_gives_the_heads_it_is_asked_for(tmp_path: Path) -> None:
    for routing, least in (("top_p", 2), ("adaptive", 1)):
        heads = {"routing": routing, "shared_heads": 1} if routing == "top_p" else {"routing": routing}
        source = read(write_run(tmp_path / "runs" / routing, heads=heads, depth={}))
        table = dial(source.model)
        assert table.target.heads_per_token == 3.0
        ids = source.heldout_ids(2048)[:, :2048].view(-1, 256)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            place = table.grid.index(share)
            level = torch.tensor([entry[place] for entry in table.head_top_p if entry])
            with torch.no_grad():
                out = source.model(ids, source.thresholds()._replace(head_top_p=level))
            expected = least + share * (4 - least)
            assert float(out.usage()["heads_per_token"]) == pytest.approx(expected, abs=0.15), (routing, share)
    fixed = dial(read(write_run(tmp_path / "runs" / "top_k", heads={"routing": "top_k", "heads_per_token": 2})).model)
    assert fixed.head_top_p == [None, None, None]
    assert fixed.target.heads_per_token == 2.0


def test_no_level_of_heads_is_the_score_of_a_frequent_token(tmp_path: Path) -> None:
    """Before the first attention all occurrences of a token have the same score, so a quantile is often that score."""
    near: dict[str, int] = {"held": 0, "exported": 0}
    for seed in range(4):
        run = write_run(
            tmp_path / "runs" / str(seed), steps=(seed,), heads={"routing": "top_p", "heads_per_token": 2.5}, depth={}
        )
        source = read(run)
        with torch.no_grad():
            heads = source.model(source.heldout_ids(256)).routing[0].heads
        levels = {"held": source.model.default_thresholds(), "exported": source.thresholds()}
        for name, limits in levels.items():
            distance = (heads.mass_before[:, 1:] - limits.head_top_p[0]).abs().amin(-1)
            near[name] += int((distance < 1e-5).sum())
    assert near["exported"] == 0
    assert near["held"] > 0.01 * 4 * 256, "if controllers never hold such a level, there is nothing to move"


def test_a_level_of_heads_moves_into_a_gap_between_the_scores() -> None:
    """The level is moved a little higher, and further where another token has that score; 1 stays all heads."""
    scores = torch.tensor([0.5, 0.5 + TIE_DISTANCE, 0.5 + 1.5 * TIE_DISTANCE, 0.9])
    for level in (0.5, 0.5 + TIE_DISTANCE / 2, 0.7, 0.9 - TIE_DISTANCE):
        moved = clear_of(level, scores)
        assert level < moved < level + 5 * TIE_DISTANCE
        assert (scores - moved).abs().min() >= TIE_DISTANCE / 2
    assert clear_of(0.3, torch.empty(0)) == pytest.approx(0.3 + TIE_DISTANCE)
    assert clear_of(1.0, scores) == 1.0


def test_the_dial_gives_the_averages_it_is_asked_for(source: Source, exported: object) -> None:
    """On the text that the controllers saw: experts per layer run, and the share of tokens that run a routed layer."""
    manifest = Manifest.read(exported.folder)  # type: ignore[attr-defined]
    ids = source.heldout_ids(2048)[:, :2048].view(-1, 256)

    def at(wanted: Dial) -> tuple[float, float]:
        found = resolve(manifest, wanted)
        ones = torch.ones(source.config.num_layers)
        limits = ThresholdTensors(
            torch.from_numpy(found.router_top_p), torch.from_numpy(found.depth_threshold), ones, ones
        )
        with torch.no_grad():
            out = source.model(ids, limits)
        return float(out.usage()["experts_per_token"]), float(out.routing[1].runs.float().mean())

    for experts in (1.0, 1.6, 2.0, 3.0, 4.0):
        assert at(Dial(experts=experts))[0] == pytest.approx(experts, abs=0.15)
    for share in (0.0, 0.25, 0.5, 0.8, 1.0):
        assert at(Dial(layers_share=share))[1] == pytest.approx(share, abs=0.06)
    assert at(Dial()) == pytest.approx((1.6, 0.5), abs=0.08)


def test_the_dial_table_has_what_the_layers_can_choose(source: Source, tmp_path: Path) -> None:
    table = dial(source.model)
    assert table.grid == np.linspace(0, 1, 33).tolist()
    assert [entry is not None for entry in table.router_top_p] == [True, True, True]
    assert [entry is not None for entry in table.depth_threshold] == [False, True, False]
    assert all(list(entry) == sorted(entry) for entry in table.router_top_p if entry)
    assert all(list(entry) == sorted(entry, reverse=True) for entry in table.depth_threshold if entry)
    assert (table.target.experts_per_token, table.target.layers_share) == (1.6, 0.5)
    dense = dial(read(write_run(tmp_path / "runs" / "dense", ffn={"routing": "dense", "dim": 40}, depth={})).model)
    assert dense.router_top_p == dense.depth_threshold == [None, None, None]
    assert (dense.target.experts_per_token, dense.target.layers_share) == (1.0, 1.0)
    json.dumps(table.model_dump())
