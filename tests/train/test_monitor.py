"""The monitor of a run: figures, alarms and acts (T36)."""

import io
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.monitor import MonitorConfig
from adaptive_lm.train.config.run_config import RunConfig, make_config, parse_setting
from adaptive_lm.train.data import Corpus
from adaptive_lm.train.loop import curriculum
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.output import ModelOutput
from adaptive_lm.train.monitor.alarms import Alarm, Alarms, band_of
from adaptive_lm.train.monitor.cures import CURES, cure_of
from adaptive_lm.train.monitor.monitor import Monitor
from adaptive_lm.train.monitor.noise import Noise
from adaptive_lm.train.monitor.routers import router_figures
from adaptive_lm.train.monitor.watch import Watch, noise_of
from adaptive_lm.train.optim.optimizer import Optimizers
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.counters import Counters
from adaptive_lm.train.run.differences import differences
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]

ALL_ROUTERS = {
    "num_layers": 3,
    "heads": {"routing": "top_p", "heads_per_token": 2, "shared_heads": 1},
    "num_heads": 4,
    "num_kv_heads": 2,
    "depth": {"layers_share": 0.6},
}
UNBALANCED: dict[str, Any] = {
    "model": {"ffn": {"num_experts": 8, "controller": "fixed", "router_top_p": 0.5}},
    "losses": {"load_balancing_loss": 0, "router_z_loss": 0},
    "schedule": {"kind": "constant", "warmup_share": 0},
}
"""Nothing spreads the load."""


def records(name: str) -> list[dict[str, Any]]:
    return read_metrics(Path("runs") / name / "metrics.jsonl")


def same_weights(one: str, other: str) -> bool:
    found = [load_checkpoint(Path("runs") / name) for name in (one, other)]
    parts = [{**each.model_state, **each.optimizer_state} for each in found]
    return parts[0].keys() == parts[1].keys() and all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0])


@pytest.fixture
def model(tiny_config: Make) -> Transformer:
    torch.manual_seed(0)
    config = tiny_config(model={**ALL_ROUTERS, "vocab_size": 30}).model
    return Transformer(config)


# --- figures


def test_figures_of_layers_are_those_of_the_tensors_themselves(model: Transformer) -> None:
    ids = torch.randint(30, (4, 16), generator=torch.Generator().manual_seed(1))
    states: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out[0])) for block in model.blocks()]
    out = model(ids, measures=True)
    for hook in hooks:
        hook.remove()
    out.logits.square().mean().backward()
    optimizers = Optimizers(model, make_config({}).optimizer)
    watch = Watch(optimizers.placed, list(optimizers.names.items()), rows=4)
    watch.saw(out, torch.ones_like(ids, dtype=torch.bool), torch.tensor(1.0))
    watch.gradients()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    watch.update(optimizers.step)
    block = {name: weight for name, weight in model.named_parameters() if name.startswith("layers.1.")}
    gradient = torch.cat([weight.grad.flatten() for weight in block.values() if weight.grad is not None])
    moved = torch.cat([(weight.detach() - before[name]).flatten() for name, weight in block.items()])
    length = torch.cat([before[name].flatten() for name in block]).norm()
    assert watch.figures["grad_norm/layers.1"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert watch.figures["update_ratio/layers.1"] == pytest.approx(float(moved.norm() / length), rel=1e-4)
    assert float(moved.norm()) > 0
    for layer, state in enumerate(states):
        expected = np.sqrt(np.mean(state.detach().numpy() ** 2))
        assert watch.figures[f"activation_rms/layers.{layer}"] == pytest.approx(expected, rel=1e-5)
    layers = {name.partition("/")[2] for name in watch.figures}
    assert layers == {"layers.0", "layers.1", "layers.2", "embedding", "head", "rest"}


def test_figures_of_routers_are_those_of_plain_numpy(model: Transformer) -> None:
    ids = torch.randint(30, (4, 16), generator=torch.Generator().manual_seed(1))
    scored = torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.7
    out = model(ids)
    figures, counts = router_figures(out, scored)
    found = {name: float(value) for name, value in figures.items()}

    def entropy(probs: Any) -> Any:
        return -(probs * np.log(probs)).sum(-1) / np.log(probs.shape[-1])

    layer = out.routing[1]
    assert layer.routes is not None
    assert layer.heads is not None
    assert layer.depth is not None
    here = scored.flatten().numpy() & layer.runs.numpy()
    assert 0 < here.sum() < scored.sum()
    for kind, probs, selected in (
        ("router", layer.routes.router_probs, layer.routes.selected_experts),
        ("head_router", layer.heads.router_probs, layer.heads.selected_heads[:, 1:]),
    ):
        chosen, used = probs.detach().numpy()[here], selected.numpy()[here].sum(0)
        assert found[f"{kind}_entropy/layers.1"] == pytest.approx(entropy(chosen.mean(0)), rel=1e-5)
        assert found[f"{kind}_token_entropy/layers.1"] == pytest.approx(entropy(chosen).mean(), rel=1e-5)
        assert counts[f"{kind}_load/layers.1"].tolist() == used.tolist()
    scores = layer.depth.scores.detach().numpy()[scored.flatten().numpy()]
    both = np.stack([scores, 1 - scores], -1)
    assert found["depth_router_entropy/layers.1"] == pytest.approx(entropy(both.mean(0)), rel=1e-5)
    assert found["depth_router_token_entropy/layers.1"] == pytest.approx(entropy(both).mean(), rel=1e-5)
    assert "depth_router_entropy/layers.0" not in found  # the first layer always runs
    assert "depth_router_load/layers.1" not in counts


def test_looking_changes_nothing_and_only_logged_steps_are_looked_at(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    begin = Watch.__init__
    monkeypatch.setattr(Watch, "__init__", lambda self, *given: (looked.append(1), begin(self, *given))[1])
    for name, every in (("each", 1), ("fourth", 4), ("none", 1000)):
        training.begin(tiny_config(model=ALL_ROUTERS, trainer={"log_every": every}), named_run(name), display=display)
    assert len(looked) == 12 + 3 + 0
    assert same_weights("each", "none")
    assert same_weights("fourth", "none")
    with_figures = [record["step"] for record in records("fourth") if "update_ratio/layers.1" in record]
    assert with_figures == [4, 8, 12]
    last = records("each")[-1]
    assert last["first_block_grad_norm"] == last["grad_norm/layers.0"] > 0


def test_the_noise_of_a_gradient_is_found_from_two_sizes_of_batch() -> None:
    """McCandlish et al. 2018, appendix A.1: unbiased, so that the mean over many steps is the truth."""
    generator = np.random.default_rng(0)
    true, spread, noise = np.full(50, 1.0), 2.0, Noise()
    found_all, scale = [], None
    for _ in range(2000):
        rows = true + spread * generator.standard_normal((16, 50))
        found = noise_of((rows[:4].mean(0) ** 2).sum(), (rows.mean(0) ** 2).sum(), 4, 16)
        found_all.append(found)
        scale = noise.observe(*found)
    signal, variance = np.mean(found_all, 0)
    assert signal == pytest.approx((true**2).sum(), rel=0.03)
    assert variance == pytest.approx(spread**2 * 50, rel=0.03)
    assert scale == pytest.approx(variance / signal, rel=0.5)  # of the last ten or so


# --- alarms


def test_an_alarm_is_raised_once_after_patience_and_again_only_after_it_was_over() -> None:
    alarms = Alarms(MonitorConfig(patience=3, grad_norm=(0.1, 2.0)))
    values = [5.0, 5.0, 1.0, 5.0, 5.0, 5.0, 5.0, 1.0, 0.01, 0.01, 0.01, float("nan")]
    raised = []
    for value in values:
        alarms = Alarms(alarms.config, alarms.state())  # a resumed run counts on
        raised.append([str(each) for each in alarms.judge({"grad_norm/layers.0": value})[1]])
    assert raised == [
        *[[]] * 5, ["grad_norm/layers.0 is 5, expected 0.1 to 2"],
        *[[]] * 4, ["grad_norm/layers.0 is 0.01, expected 0.1 to 2"], [],
    ]  # fmt: skip
    assert not alarms.judge({"grad_norm/layers.1": 50.0})[0]  # each layer has its own patience


def test_a_tiny_step_is_an_alarm_only_where_the_schedule_has_not_made_it_so(model: Transformer) -> None:
    raised = {}
    for rate in (1.0, 1e-6):
        one = monitor_of(model, patience=1)
        one.optimizers.set_rate(rate)
        watch: Any = SimpleNamespace(figures={"update_ratio/layers.0": 1e-9}, used={}, noise=None)
        raised[rate] = one.judge(watch, warm=True).get("alarms", [])
    assert raised == {
        1.0: ["update_ratio/layers.0 is 1e-09, expected 1e-07 to 0.5: this layer hardly learns"],
        1e-6: [],
    }


def test_an_expert_is_dead_if_several_steps_together_hardly_use_it_and_not_by_chance(model: Transformer) -> None:
    """Sixteen experts of which in each step another one gets no token, until the fifth gets none any more."""
    one, said, loads = monitor_of(model, patience=3), [], []
    for step in range(40):
        used = [10.0] * 16
        used[step % 16] = 0.0
        used[5] = 0.0 if step >= 24 else used[5]
        one = monitor_of(model, one.state(), patience=3)  # a resumed run counts on
        watch: Any = SimpleNamespace(figures={}, used={"router_load/layers.0": used}, noise=None)
        record = one.judge(watch, warm=step >= 1)
        said.append(record.get("alarms", []))
        loads.append(record["router_load/layers.0"])
    assert loads[2:24] == pytest.approx([20 * 16 / 450] * 22)
    # three steps without it, and that seen three times
    assert [step for step, each in enumerate(said) if each] == [28]
    assert said[28] == ["router_load/layers.0 is 0, expected at least 0.02: an expert of this layer is hardly used"]


def test_a_run_says_an_alarm_on_the_screen_and_in_its_record(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO
) -> None:
    config = tiny_config(monitor={"activation_rms": [None, 1e-3]}, schedule={"warmup_steps": 5})
    training.begin(config, named_run("a"), display=display)
    said = "activation_rms/layers.0 is"
    assert [record["step"] for record in records("a") if "alarms" in record] == [8]  # the third after the warm-up
    assert sum(said in line for line in story.getvalue().splitlines()) == 1
    assert f"step 8: alarm for 3 logged steps: {said}" in story.getvalue()
    assert all(said in record["alarms"][0] for record in records("a") if "alarms" in record)
    assert "expected at most 0.001: the residual stream after this layer is far too large" in story.getvalue()
    resume = "adaptive train --resume --name a --override-resume --set monitor.act=lr"
    assert f"step 8: to correct it, stop with Ctrl-C and type: {resume}\n" in story.getvalue()


def test_a_router_that_collapses_raises_the_alarm_and_where_asked_is_spread_again(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T36: entropy and load; with the act both recover, although the cause of the collapse stays."""
    compute = curriculum.training_loss

    def pulled(model: Transformer, out: ModelOutput, *arguments: Any, **options: Any) -> Any:
        """Every token of the first layer is drawn to one expert."""
        loss, parts = compute(model, out, *arguments, **options)
        routes = out.routing[0].routes
        assert routes is not None
        return loss - 0.3 * routes.router_probs[:, 3].log().mean(), parts

    monkeypatch.setattr(curriculum, "training_loss", pulled)
    watched = {"router_entropy": 0.5, "router_load": 0.02, "patience": 4}
    for name, act in (("left", {}), ("spread", {"router_act": "balance", "router_balance": 1.0, "router_steps": 60})):
        config = tiny_config(**UNBALANCED, monitor={**watched, **act}, trainer={"steps": 60, "eval_every": 100})
        training.begin(config, named_run(name), display=display)
    left, spread = records("left"), records("spread")
    raised = " ".join(" ".join(record.get("alarms", ())) for record in left)
    assert "router_entropy/layers.0 is" in raised
    assert "router_load/layers.0 is 0, expected at least 0.02" in raised
    assert not any("acts" in record for record in left)
    first = next(record for record in spread if "acts" in record)
    assert first["step"] == next(record["step"] for record in spread if "alarms" in record)

    def late(found: list[dict[str, Any]], figure: str) -> float:
        return float(np.mean([record[f"{figure}/layers.0"] for record in found[-8:]]))

    assert late(left, "router_load") < 0.02 < 0.1 < late(spread, "router_load")
    assert late(left, "router_entropy") < 0.5 < 0.8 < late(spread, "router_entropy")


# --- cures

OUTSIDE = {
    "grad_norm above": {"grad_norm": [None, 1e-9]},
    "grad_norm below": {"grad_norm": [1e9, None]},
    "update_ratio above": {"update_ratio": [None, 1e-9]},
    "update_ratio below": {"update_ratio": [1e9, None]},
    "activation_rms above": {"activation_rms": [None, 1e-9]},
    "activation_rms below": {"activation_rms": [1e9, None]},
    "router_entropy below": {"router_entropy": 1.0},
    "router_token_entropy below": {"router_token_entropy": 1.0},
    "router_load below": {"router_load": 1.0},
}
"""Bands that every run of `ALL_ROUTERS` is outside of."""
QUIET = {"grad_norm": [None, None], "update_ratio": [None, None], "activation_rms": [None, None], "router_load": 0.0}
OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "muon", "lr": 0.02}, {"kind": "adamw"}, {"kind": "lars"}, {"kind": "sgd", "lr": 0.01},
]  # fmt: skip


def test_every_figure_that_has_a_band_has_a_cure_for_each_side_of_it(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    training.begin(tiny_config(model=ALL_ROUTERS), named_run("a"), stop_at=1, display=display)
    config, kinds = MonitorConfig(), {name.partition("/")[0] for name in records("a")[-1] if "/" in name}
    bounded = set()
    for kind in kinds:
        least, most = band_of(config, f"{kind}/layers.1")
        bounded |= {(kind, side) for side, edge in (("below", least), ("above", most)) if edge is not None}
    assert {kind for kind, _ in bounded} == kinds
    assert bounded == set(CURES)


@pytest.mark.parametrize(
    ("outside", "optimizer"),
    [
        pytest.param(outside, optimizer, id=f"{outside}, {optimizer['kind']}")
        for outside in OUTSIDE
        for optimizer in (OPTIMIZERS[:1] if "router" in outside else OPTIMIZERS)
    ],
)
def test_what_an_alarm_says_to_type_is_accepted_by_the_run_that_raised_it(
    tiny_config: Make,
    folder: Path,
    display: Progress,
    story: io.StringIO,
    outside: str,
    optimizer: dict[str, Any],
) -> None:
    monitor = {**QUIET, "router_entropy": 0.0, "patience": 1, **OUTSIDE[outside]}
    config = tiny_config(
        model=ALL_ROUTERS, monitor=monitor, optimizer=optimizer, schedule={"warmup_share": 0}, trainer={"log_every": 2}
    )
    training.begin(config, named_run("a"), stop_at=2, display=display)
    before, record = load_checkpoint(Path("runs/a")).config, records("a")[-1]
    assert all(outside.partition(" ")[0] in each for each in record["alarms"])
    line = next(each for each in story.getvalue().splitlines() if "to correct it" in each)
    command = line.partition("type: ")[2]
    settings = [each.split()[0] for each in command.split(" --set ")[1:]]
    assert command.startswith("adaptive train --resume --name a --override-resume --set ")
    assert settings == record["cures"]
    result = CliRunner().invoke(group, [*command.split()[1:], "--stop-at", "4"])
    assert result.exit_code == 0, result.output
    stored = load_checkpoint(Path("runs/a"))
    assert stored.step == 4
    changed = differences(before, stored.config)
    assert sorted(f"{key}={value}" for key, (_, value) in changed.items()) == sorted(settings)


def test_a_cure_that_is_typed_again_goes_further() -> None:
    for (kind, side), (meaning, _) in CURES.items():
        value, band = (1.0, (None, 0.5)) if side == "above" else (0.0, (0.5, None))
        alarm, config, found = Alarm(f"{kind}/layers.1", value, band), make_config({}), []
        for _ in range(3):
            cure = cure_of(alarm, config)
            assert cure.meaning == meaning
            settings = [parse_setting(f"{key}={each}") for key, each in cure.settings.items()]
            config = make_config(config.model_dump(mode="json"), settings)
            found.append(config)
        assert len({one.to_yaml() for one in found}) == 3


def drawn_to(probs: Callable[[ModelOutput], torch.Tensor]) -> Callable[..., Any]:
    """Make a training loss that draws all tokens to one choice; `probs` reads the probabilities of the choices."""
    compute = curriculum.training_loss

    def pulled(model: Transformer, out: ModelOutput, *arguments: Any, **options: Any) -> Any:
        loss, parts = compute(model, out, *arguments, **options)
        return loss - 0.02 * probs(out).clamp(min=1e-9).log().mean(), parts

    return pulled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "probs", "least"),
    [
        ("router_load/layers.0", lambda out: out.routing[0].routes.router_probs[:, 3], 0.1),
        ("head_router_load/layers.0", lambda out: out.routing[0].heads.router_probs[:, 1], 0.1),
        ("depth_router_entropy/layers.1", lambda out: out.routing[1].depth.scores, 0.8),
    ],
    ids=["experts", "heads", "depth"],
)
def test_the_cure_of_a_routers_alarm_brings_its_figure_back(
    tiny_config: Make,
    folder: Path,
    display: Progress,
    monkeypatch: pytest.MonkeyPatch,
    figure: str,
    probs: Callable[[ModelOutput], torch.Tensor],
    least: float,
) -> None:
    """The figure recovers although the loss still draws its tokens to one choice."""
    monkeypatch.setattr(curriculum, "training_loss", drawn_to(probs))
    config = tiny_config(
        model={**ALL_ROUTERS, **UNBALANCED["model"]},
        losses={"load_balancing_loss": 0.0, "head_balancing_loss": 0.0, "depth_z_loss": 0.0},
        schedule={"kind": "constant", "warmup_share": 0},
        trainer={"steps": 60, "eval_every": 1000, "checkpoint_every": 1000},
    )
    cure = cure_of(Alarm(figure, 0.0, (least, None)), config)
    settings = [parse_setting(f"{key}={value}") for key, value in cure.settings.items()]
    training.begin(config, named_run("left"), stop_at=25, display=display)
    shutil.copytree("runs/left", "runs/mended")
    late = {}
    for name, typed in (("left", []), ("mended", settings)):
        training.resume(named_run(name), typed, override=bool(typed), display=display)
        late[name] = float(np.mean([record[figure] for record in records(name)[-10:]]))
    assert late["left"] < least < late["mended"]


# --- acts


def monitor_of(model: Transformer, state: Any = None, trainer: Any = None, **monitor: Any) -> Monitor:
    config = make_config({"monitor": monitor, "trainer": {"log_every": 1, **(trainer or {})}})
    return Monitor(config, Optimizers(model, config.optimizer, by_layer=True), Counters(), state)


def test_the_rate_of_a_layer_falls_while_it_is_above_its_band_and_rises_again(model: Transformer) -> None:
    one = monitor_of(model, act="lr", patience=2, grad_norm=[None, 1.0], least_rate=0.2)
    rates, acts = [], []
    for value in [5.0] * 8 + [0.5] * 8:
        one = monitor_of(model, one.state(), act="lr", patience=2, grad_norm=[None, 1.0], least_rate=0.2)
        watch = SimpleNamespace(figures={"grad_norm/layers.1": value, "grad_norm/head": 0.1}, used={}, noise=None)
        acts.append(one.judge(watch, warm=True).get("acts", []))  # type: ignore[arg-type]
        one.optimizers.set_rate(1.0)
        groups = [group for each in one.optimizers.all for group in each.param_groups]
        rates.append({group["layer"]: group["lr"] / group["peak"] for group in groups})
    assert [rate["layers.1"] for rate in rates] == pytest.approx(
        [1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.8, 0.8, 1, 1, 1]
    )
    assert {rate["head"] for rate in rates} == {1.0}
    assert acts[1] == ["the rate of layers.1 is 0.5 of its usual one: grad_norm/layers.1 is 5, expected at most 1"]
    assert acts[13] == ["the rate of layers.1 is 1 of its usual one: its figures are back"]
    assert [bool(each) for each in acts].count(True) == 6


def test_nothing_is_judged_before_the_rate_is_warm(model: Transformer) -> None:
    one = monitor_of(model, act="lr", patience=1, grad_norm=[None, 1.0])
    watch: Any = SimpleNamespace(figures={"grad_norm/layers.1": 5.0}, used={}, noise=None)
    assert one.judge(watch, warm=False) == watch.figures
    assert one.judge(watch, warm=True).keys() == {"grad_norm/layers.1", "alarms", "cures", "acts"}


@pytest.mark.parametrize(
    ("monitor", "trainer"),
    [
        ({"act": "lr", "patience": 2, "grad_norm": [None, 0.05], "update_ratio": [None, None]}, {}),
        ({"act": "batch", "patience": 2, "noise_factor": 0.01}, {"micro_batches": 2}),
        ({"router_act": "balance", "router_entropy": 1.0, "patience": 2, "router_steps": 3}, {}),
    ],
    ids=["lr", "batch", "router"],
)
def test_a_run_that_acts_resumes_to_the_bit_and_reads_every_window_once(
    tiny_config: Make,
    folder: Path,
    display: Progress,
    monkeypatch: pytest.MonkeyPatch,
    monitor: dict[str, Any],
    trainer: dict[str, Any],
) -> None:
    """T13, T14, T16, T17: the state of the monitor is part of the checkpoint."""
    draw, drawn = Corpus.batch, []

    def look(self: Corpus, first: int, batch_size: int, length: int) -> Any:
        drawn.append((first, batch_size))
        return draw(self, first, batch_size, length)

    monkeypatch.setattr(Corpus, "batch", look)
    config = tiny_config(monitor=monitor, trainer=trainer, schedule={"warmup_steps": 1})
    training.begin(config, named_run("whole"), display=display)
    whole = list(drawn)
    training.begin(config, named_run("parts"), stop_at=4, display=display)
    training.resume(named_run("parts"), stop_at=7, display=display)
    training.resume(named_run("parts"), display=display)
    assert drawn[len(whole) :] == whole
    assert same_weights("whole", "parts")
    acts = [(record["step"], record["acts"]) for record in records("whole") if "acts" in record]
    assert len(acts) >= 2 or monitor.get("router_act")
    assert acts
    assert acts == [(record["step"], record["acts"]) for record in records("parts") if "acts" in record]
    assert all(first + rows == after for (first, rows), (after, _) in pairwise(whole))
    if monitor.get("act") == "batch":
        assert {rows for _, rows in whole} >= {4, 8, 16}
        assert max(rows for _, rows in whole) <= 32
        assert records("whole")[-1]["batch_size"] == whole[-1][1]
    training.begin(tiny_config(trainer=trainer, schedule={"warmup_steps": 1}), named_run("left"), display=display)
    assert not same_weights("whole", "left")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"monitor": {"grad_norm": [2.0, 1.0]}}, "expected the lower limit first"),
        ({"monitor": {"act": "batch"}}, "micro_batches is 1; set it to 2"),
        (
            {
                "monitor": {"act": "batch"},
                "trainer": {"micro_batches": 2, "batch_schedule": [{"from_step": 5, "batch_size": 16}]},
            },
            "batch_schedule is set; leave one of them out",
        ),
        (
            {
                "monitor": {"act": "batch"},
                "trainer": {"micro_batches": 2, "parallel": "shard"},
            },
            "whole gradients, but trainer.parallel is shard",
        ),
        (
            {
                "monitor": {"act": "batch"},
                "trainer": {"micro_batches": 2},
                "data": {"sources": [{"path": "a.txt", "epochs": 2}]},
            },
            "sources with epochs set the number of steps",
        ),
    ],
)
def test_a_monitor_that_makes_no_sense_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config(sections)
