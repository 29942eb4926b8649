"""Write the adapters of a run in the format of peft."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...contract.errors import UserError
from ...contract.file_names import PROVENANCE
from ...train.importing.peft import CONFIG, PREFIX, WEIGHTS, peft_layers, require_family
from ...train.model.lora import ADAPTER
from ...train.run.checkpoints.adapted import AdaptedTensors
from ...train.run.checkpoints.checkpoint import Checkpoint
from ...train.run.checkpoints.tensor_file import write_tensors
from ..folder import new_folder
from .hf import write_json
from .hf_family import outgoing


def write(checkpoint: Checkpoint, out: Path, log: Callable[[str], None]) -> None:
    """Write the adapters of a checkpoint as a folder that peft loads beside the base model.

    Raises:
        UserError: The run has no adapters, its model has no counterpart in transformers, or the folder cannot be
            written. Nothing is written then.
    """
    state, config = checkpoint.model_state, checkpoint.config
    if not isinstance(state, AdaptedTensors) or config.lora is None:
        raise UserError(
            f"{checkpoint.run} has no adapters, since it trained all its weights; write the whole model: "
            f"adaptive export {checkpoint.run.name} --to hf --out {out}"
        )
    base = str(config.origin.run) if config.origin else ""
    if (checkpoint.run / PROVENANCE).exists():
        require_family(checkpoint.run)
        base = str(json.loads((checkpoint.run / PROVENANCE).read_text("utf-8")).get("source") or base)
    else:
        outgoing(config.model)  # which refuses a model that transformers does not have
    tensors, modules = {}, set()
    for theirs, ours, part in peft_layers(config.model):
        if f"{ours}{ADAPTER}a" in state.own:
            modules.add(theirs.rpartition(".")[2])
            for kind, own in (("A", "a"), ("B", "b")):
                tensors[f"{PREFIX}{theirs}.lora_{kind}.weight"] = state.own[f"{ours}{ADAPTER}{own}"][part]
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    with new_folder(out) as folder:
        size = write_tensors(folder / WEIGHTS, tensors)["bytes"]
        write_json(folder / CONFIG, settings)
    log(f"wrote {out} ({WEIGHTS} {size / 2**20:.1f} MiB)")
    log(f"next: PeftModel.from_pretrained(model, {str(out)!r}), where model is {base} in transformers")
