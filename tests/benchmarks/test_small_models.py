"""The comparisons of small models: their tables and plots."""

from importlib import import_module
from pathlib import Path

import pytest
import torch


def test_a_line_is_the_mean_over_the_seeds_with_times_and_memory_of_the_first(tmp_path: Path) -> None:
    report = import_module("architectures.report")
    lines = [
        report.Line("dense", 0, 100, 2.0, 1.5, True, {128: [0.5, 0.7, 0.6], 512: [1.0]}, {128: 1024, 512: 4096}),
        report.Line("dense", 1, 300, 2.2, 1.5, True),
        report.Line("GPT-2", 0, 50, 3.0, 2.0, False),
    ]
    text = report.markdown(lines, (128, 512), "a machine", 0.9)
    assert text.startswith("a machine\n\n| model | steps |")
    assert "|---|---|---|---|---|---|---|---|\n" in text
    row = "| 200 | 2.100 ± 0.100 | 1.50 | 0.600 (0.500 to 0.700) | 1.000 (1.000 to 1.000) | 1 | 4 |"
    assert f"| **dense** {row}\n" in text
    assert "| GPT-2 | 50 | 3.000 | 2.00 | - | - | - | - |\n" in text
    report.draw(lines, (128, 512), tmp_path / "plot.png", "a machine")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_of_the_mechanisms_is_drawn(tmp_path: Path) -> None:
    mechanisms = import_module("mechanisms")
    rows = [mechanisms.Row(kind, 0, 9, 1.5, 2e6, 1.6, 4, 4, 0.3, 0.2, 0.4) for kind in ("dense", "full")]
    points = [{"compute": float(one), "loss": 1.5, "milliseconds": 0.3, "flops": 1e6} for one in mechanisms.POINTS]
    mechanisms.plot(rows, points, tmp_path / "plot.png", "a text")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_trains_by_the_clock_and_learns() -> None:
    train = import_module("training.by_clock").train_by_clock
    torch.manual_seed(0)
    model = torch.nn.Embedding(5, 5)
    ids = torch.arange(300) % 5

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert inputs.shape == targets.shape == (4, 8)
        assert ((inputs + 1) % 5 == targets).all()
        return torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    before = loss_of(ids[None, :8].expand(4, 8), ids[None, 1:9].expand(4, 8)).item()
    steps = train(model, ids, loss_of, 0.5, rate=0.1, second_beta=0.95, batch=4, length=8)
    after = loss_of(ids[None, :8].expand(4, 8), ids[None, 1:9].expand(4, 8)).item()
    assert steps > 10
    assert after < 0.5 * before


def test_cores_are_lent_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = import_module("training.cores")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {3, 1, 2}, raising=False)
    lent = cores.Cores(2)
    with lent.one() as first, lent.one() as second:
        assert {first, second} == {1, 2}
    with lent.one() as again:
        assert again in (1, 2)


def test_settings_are_written_as_json() -> None:
    settings = import_module("processes.command").settings
    assert settings({"a.b": [1, 2], "c": False, "d": "x"}) == [
        "--set",
        "a.b=[1, 2]",
        "--set",
        "c=false",
        "--set",
        'd="x"',
    ]
