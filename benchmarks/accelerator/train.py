"""The training part of the GPU benchmark: whole steps of a dense model and of a mixture of experts, compiled.

Both have about 110M weights in use. A step is forward, backward, clipping, optimizers and controllers, in bf16 where
the GPU has it. FLOPs are 6 a weight in use and token, and 6 L D T a token for causal attention over T tokens.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelerator.part import Part
from adaptive_lm.runtime.measuring.timing import Distribution
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.model.losses import training_loss
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.optim.clipping import Clipping
from adaptive_lm.train.optim.optimizer import Optimizers
from adaptive_lm.train.system.device import autocast, choose_precision

VOCABULARY = 32_000
PEAK = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "GH200": 989.0, "B200": 2250.0,
    "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A30": 165.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""Products of bf16 without sparsity, in TFLOP/s, from the makers' data sheets; the first name that fits counts."""
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"routing": "dense", "dim": 2048},
    "top-p, 2 of 8": {"num_experts": 8, "experts_per_token": 2, "expert_dim": 1024},
}
WARM_UP = 4
"""Steps that compile, choose kernels and settle the allocator before any is timed."""
MOST_STEPS = 40


def peak_of(device: str) -> float | None:
    """Return the peak of a device by its name, in TFLOP/s; None where it is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAK.items() if known in name), None)


class Training:
    """A model, its optimizers and one batch."""

    def __init__(self, part: Part, ffn: dict[str, Any], precision: str, batch: int, length: int) -> None:
        shape = {"dim": 64, "num_layers": 2, "num_heads": 4} if part.small else SHAPE
        if part.small:
            ffn = ffn | ({"dim": 128} if "dim" in ffn else {"expert_dim": 64})
        config = make_config({
            "model": {**shape, "num_kv_heads": shape["num_heads"], "vocab_size": VOCABULARY, "context_length": length,
                      "tie_embeddings": True, "ffn": ffn}
        })  # fmt: skip
        self.part, self.config, self.precision = part, config, precision
        self.device, self.tokens = torch.device(part.device), batch * length
        torch.manual_seed(0)
        self.model = Transformer(config.model).to(self.device)
        self.ids = torch.randint(VOCABULARY, (batch, length), device=self.device)
        self.targets = self.ids.roll(-1, 1)
        self.counted = torch.ones_like(self.ids, dtype=torch.bool)
        self.optimizers, self.clipping = Optimizers(self.model, config.optimizer), Clipping(config.optimizer)

    def weights_in_use(self) -> float:
        """Count the weights that a token multiplies, the tied embedding once."""
        model, used = self.config.model, float(self.config.model.ffn.experts_per_token)
        stacks = sum(p.numel() for n, p in self.model.named_parameters() if p.ndim == 3)
        rest = sum(p.numel() for p in self.model.parameters()) - stacks
        return rest + stacks * used / model.num_experts

    def flops(self) -> float:
        """Return the FLOPs of a step."""
        model = self.config.model
        attention = 6 * model.num_layers * model.dim * model.context_length
        return self.tokens * (6 * self.weights_in_use() + attention)

    def step(self) -> Tensor:
        """Take a whole step; return its loss."""
        with autocast(self.device, self.precision):
            out = self.model(self.ids)
            loss = training_loss(self.model, out, self.targets, self.counted, self.config.losses)[0]
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.model.observe(out, self.counted)
        self.clipping.clip(self.optimizers.names.items())
        self.optimizers.step()
        self.optimizers.zero_grad()
        return loss.detach()

    def timed(self) -> float:
        """Return the seconds of a step."""
        self.part.synchronize()
        begin = time.perf_counter()
        self.step()
        self.part.synchronize()
        return time.perf_counter() - begin


SHAPE = {"dim": 768, "num_layers": 12, "num_heads": 12}


def fitting(part: Part, ffn: dict[str, Any], precision: str, compiled: bool) -> Training:
    """Return a training that has warmed up, with the largest batch up to 16 that fits the memory of the device."""
    batch, length = (2, 32) if part.small else (16, 512)
    while True:
        training = Training(part, ffn, precision, batch, length)
        if compiled:
            training.model.compile_blocks()
        try:
            for _ in range(WARM_UP):
                training.step()
            return training
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            del training
            torch.cuda.empty_cache()
            part.say(f"out of memory; a batch of {batch}")


def measure(part: Part, name: str, precision: str, compiled: bool, seconds: float) -> None:
    """Add the row of one model."""
    end = time.monotonic() + seconds
    begin = time.monotonic()
    training = fitting(part, MODELS[name], precision, compiled)
    warm_up = time.monotonic() - begin
    times: list[float] = []
    while len(times) < 5 or (len(times) < MOST_STEPS and time.monotonic() < end):
        times.append(training.timed())
    loss = float(training.step())
    if not np.isfinite(loss):
        raise RuntimeError(f"the loss is {loss} after {len(times)} steps")
    spread = Distribution.of(np.asarray(times) * 1e3)
    peak = peak_of(part.device)
    tflops = training.flops() / spread.median / 1e9
    part.add(
        name=name, compiled=compiled, precision=precision, batch=training.tokens // training.ids.shape[1],
        length=training.ids.shape[1], weights=training.weights_in_use(), ms=[spread.median, spread.p5, spread.p95],
        tokens_per_second=1e3 * training.tokens / spread.median, tflops=tflops, steps=len(times),
        share_of_peak=None if peak is None or precision != "bf16" else tflops / peak, warm_up_seconds=warm_up,
    )  # fmt: skip


def main() -> None:
    """Time both models, compiled first; without compilation only if there is time."""
    part = Part.from_arguments()
    precision = choose_precision("auto", torch.device(part.device))
    part.facts["peak"] = peak_of(part.device)
    settings = [(name, compiled) for compiled in (True, False) for name in MODELS]
    for number, (name, compiled) in enumerate(settings):
        share = 0.9 * part.left() / (len(settings) - number)
        if share < 3:
            if compiled:
                part.failures.append(f"{name}, compiled: no time was left")
                part.print()
            continue
        what = f"training {name}{', compiled' if compiled else ''}, {precision}"
        part.attempt(what, partial(measure, part, name, precision, compiled, share))
        if part.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
