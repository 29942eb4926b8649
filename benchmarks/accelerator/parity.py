"""The parity part of the GPU benchmark: both graphs that a GPU runs, compared with torch on the CPU.

The same check as at the end of an export, but the graphs run on the CUDA provider: decisions, logits, a prompt against
its tokens, a greedy continuation.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accelerator.part import Part
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.check import check
from adaptive_lm.export.proof.judge import Judge
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "vocab_size": 272,
    "context_length": 256,
    "dim": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn": {"num_experts": 8, "expert_dim": 48, "experts_per_token": 2},
}
MODELS: dict[str, dict[str, Any]] = {
    "experts": {},
    "dense": {"ffn": {"routing": "dense", "dim": 96}},
    "other attention": {
        "attention": {
            "qk_norm": "full",
            "qkv_bias": True,
            "o_bias": True,
            "softcap": 5.0,
            "rope": {"scaling": {"kind": "yarn", "factor": 4.0, "original_context": 64}},
        },
    },
    "depth and exits": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 2]}},
    "everything": {
        "heads": {"routing": "top_p", "heads_per_token": 2.5},
        "attention": {"positions": ["rope", "cope", "none", "cope"], "max_positions": 8, "window": [0, 16, 0, 24]},
        "depth": {"layers_share": 0.5, "skipped_kv": "none", "exit_layers": [1]},
    },
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def write_run(folder: Path, **changes: Any) -> None:
    """Write a run of random weights, large enough that routers make varied choices."""
    config = make_config({"model": BASE | changes, "tokenizer": {"kind": "bytes"}})
    torch.manual_seed(0)
    model = Transformer(config.model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 2.0 if "router" in name else 1.0
            nn.init.normal_(parameter, std=0.1 if "position" in name else scale * parameter.shape[1] ** -0.5)
    save_checkpoint(folder / "checkpoints", 0, config, model.state_dict(), {"slot": torch.ones(1)}, {})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_str(), encoding="utf-8")
    (folder / "heldout.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8")[:4000], encoding="utf-8")


def compare(part: Part, name: str, source: Source, precision: Precision) -> None:
    """Check the portable graph and that of the target `cuda` in one precision."""
    folder = part.work / f"{name.replace(' ', '-')}-{precision}"
    folder.mkdir(exist_ok=True)
    manifest = write_files(source, folder, Precisions.of(precision), ("cuda",))
    judge, portable = Judge(source), None
    for target in ("portable", "cuda"):
        session = Session(folder, manifest, device=part.device, target=target, verify=False)
        outcome = check(source, session, lambda line: None, judge, portable)
        portable = outcome.passes
        compared = [row for row in outcome.report.values() if isinstance(row, dict) and "wrong_decisions" in row]
        part.add(
            model=name,
            precision=precision,
            target=target,
            passed=outcome.report["passed"],
            tokens=sum(row["tokens"] for row in compared),
            wrong=sum(row["wrong_decisions"] for row in compared),
            ties=sum(row["near_ties"] for row in compared),
            difference=max(row["largest_logit_difference"] for row in compared),
        )
        part.failures += [f"{name}, {precision}, {target}: {line}" for line in outcome.failures]


def main() -> None:
    """Compare every model in every precision."""
    part = Part.from_arguments()
    for name, changes in list(MODELS.items())[: 2 if part.small else None]:
        run = part.work / f"run-{name.replace(' ', '-')}"
        write_run(run, **changes)
        source = read(run)
        for precision in PRECISIONS:
            part.attempt(f"{name}, {precision}", partial(compare, part, name, source, precision))


if __name__ == "__main__":
    main()
