"""The monitor of a run: it judges figures, raises alarms and acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.run_config import RunConfig
from ..model.config.loss import LossConfig
from ..optim.optimizer import Optimizers
from ..run.counters import Counters
from .alarms import Alarm, Alarms
from .cures import cure_of
from .noise import Noise
from .routers import Loads
from .watch import Watch

ALL = "all"
"""The key in the rates that means every layer."""


class Monitor:
    """Judge the figures of each logged step, and act as `monitor.act` and `monitor.router_act` say.

    Decisions depend only on `figures`, `used`, `noise` and the counters, so ranks with equal figures take equal
    actions. All its state is in `state` and in the counters.
    """

    def __init__(
        self,
        config: RunConfig,
        optimizers: Optimizers,
        counters: Counters,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        state = state or {}
        self.config, self.settings = config, config.monitor
        self.optimizers, self.counters = optimizers, counters
        self.alarms = Alarms(self.settings, state)
        self.noise = Noise(state.get("noise"))
        self.loads = Loads(self.settings.patience, state.get("loads"))
        self.inside: dict[str, int] = dict(state.get("inside", {}))
        """Layer -> logged steps in a row without an alarm, for layers with a lowered rate."""
        self.balanced_until: int = int(state.get("balanced_until", 0))
        """The step until which the balancing losses have a higher weight."""
        self.crowded: int = int(state.get("crowded", 0))
        """Logged steps in a row with a noise scale above the batch."""
        optimizers.held = dict(state.get("rates", {}))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {
            **self.alarms.state(), "noise": self.noise.state(), "loads": self.loads.state(),
            "inside": dict(self.inside), "balanced_until": self.balanced_until, "crowded": self.crowded,
            "rates": dict(self.optimizers.held),
        }  # fmt: skip

    def watch(self, rows: int) -> Watch | None:
        """Return a watch for the next step if it is logged, else None; `rows` is B."""
        logged = (self.counters.step + 1) % self.config.trainer.log_every == 0
        return Watch(self.optimizers.placed, list(self.optimizers.names.items()), rows) if logged else None

    def losses(self) -> LossConfig:
        """Return the weights of the losses for the next step."""
        losses = self.config.losses
        if self.counters.step >= self.balanced_until:
            return losses
        spread = ("load_balancing_loss", "head_balancing_loss", "depth_z_loss")
        least = {name: max(getattr(losses, name), self.settings.router_balance) for name in spread}
        return losses.model_copy(update=least)

    def judge(self, watch: Watch, warm: bool) -> dict[str, Any]:
        """Return the record of a logged step: its figures, new alarms with their cures, and actions.

        No alarm is raised while the learning rate warms up (not `warm`).
        """
        figures = watch.figures | self.loads.observe(watch.used)
        record: dict[str, Any] = dict(figures)
        if watch.noise is not None:
            scale = self.noise.observe(*watch.noise)
            record |= {} if scale is None else {"noise_scale": scale}
        if not warm:
            return record
        judged = {name: each for name, each in figures.items() if self.loads.enough(name)}
        holding, new = self.alarms.judge(judged, self.optimizers.rate)
        acts = [*self._hold_rates(holding), *self._grow(record.get("noise_scale")), *self._spread(holding)]
        if new:
            cures = [cure_of(alarm, self.config) for alarm in new]
            record["alarms"] = [f"{alarm}: {cure.meaning}" for alarm, cure in zip(new, cures, strict=True)]
            settings = {key: value for cure in reversed(cures) for key, value in cure.settings.items()}
            record["cures"] = [f"{key}={value}" for key, value in settings.items()]
        if acts:
            record["acts"] = acts
        return record

    def messages(self, figures: Mapping[str, Any], resume_command: str) -> list[str]:
        """Return the lines for the screen after a step with these figures: alarms, commands to type, actions."""
        held = f"for {self.settings.patience} logged steps"
        lines = [f"alarm {held}: {each}" for each in figures.get("alarms", ())]
        if figures.get("cures"):
            settings = " ".join(f"--set {each}" for each in figures["cures"])
            lines.append(f"to correct it, stop with Ctrl-C and type: {resume_command} --override-resume {settings}")
        return [*lines, *figures.get("acts", ())]

    def _hold_rates(self, holding: list[Alarm]) -> list[str]:
        """Lower the rates of layers with an alarm, and raise those whose figures are back in their bands."""
        settings, rates, acts = self.settings, self.optimizers.held, []
        if settings.act != "lr":
            return []
        causes: dict[str, Alarm] = {}
        for alarm in holding:
            kind = alarm.figure.partition("/")[0]
            if alarm.above and kind in ("grad_norm", "update_ratio", "activation_rms"):
                causes.setdefault(ALL if kind == "activation_rms" else alarm.layer, alarm)
        for layer, alarm in causes.items():
            self.inside[layer] = 0
            if self.alarms.outside[alarm.figure] % settings.patience == 0:  # give each action time to show
                lower = max(rates.get(layer, 1.0) * settings.act_factor, settings.least_rate)
                if lower < rates.get(layer, 1.0):
                    rates[layer] = lower
                    acts.append(f"the rate of {layer} is {lower:.3g} of its usual one: {alarm}")
        for layer in [each for each in rates if each not in causes]:
            self.inside[layer] = self.inside.get(layer, 0) + 1
            if self.inside[layer] % settings.patience == 0:
                rates[layer] = min(rates[layer] / settings.act_factor, 1.0)
                acts.append(f"the rate of {layer} is {rates[layer]:.3g} of its usual one: its figures are back")
                if rates[layer] == 1.0:
                    del rates[layer], self.inside[layer]
        return acts

    def _grow(self, scale: float | None) -> list[str]:
        """Double the batch when its gradient has been mostly noise for `patience` logged steps."""
        settings, counters, size = self.settings, self.counters, self.config.trainer.batch_size
        if settings.act != "batch" or scale is None:
            return []
        batch = size * counters.growth
        self.crowded = self.crowded + 1 if scale > settings.noise_factor * batch else 0
        if self.crowded < settings.patience or 2 * batch > (settings.most_batch_size or 8 * size):
            return []
        self.crowded = 0
        counters.growth *= 2
        return [f"the batch is {2 * batch}: the noise scale is {scale:.3g}, above {settings.noise_factor:g} x {batch}"]

    def _spread(self, holding: list[Alarm]) -> list[str]:
        """Raise the weight of the balancing losses while a router has an alarm, and for some steps after."""
        causes = [alarm for alarm in holding if "router_" in alarm.figure]
        if self.settings.router_act != "balance" or not causes:
            return []
        begins = self.balanced_until <= self.counters.step
        self.balanced_until = self.counters.step + 1 + self.settings.router_steps
        return [f"the balancing losses weigh at least {self.settings.router_balance:g}: {causes[0]}"] if begins else []
