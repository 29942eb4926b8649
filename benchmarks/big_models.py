"""Memory, time and disk to import, export and run models of one and three billion random weights.

    python benchmarks/big_models.py [llama-1b] [qwen3-moe-3b] [--precision int4 --precision int8] [--folder FOLDER]

Each model is written in bfloat16, one shard a layer, in the shape of the real one, so nothing is downloaded and
transformers is not needed. Then the commands run as a user types them, each in its own process: import, an export with
its check for every precision, and 32 tokens of text. The rule: the model's file plus 2 GB.

Two figures of memory are listed, in GB of 10^9 bytes. "Resident" is the peak that the kernel records (VmHWM): all pages
in memory, also those of files that are mapped, which the system can take back at any time without writing. "Own" is the
peak of pages that belong to the process alone (RssAnon, sampled every 20 ms).

It needs 4.5 times the size of the model on the disk: 12 GB and 28 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from processes.memory import memory_of

GB = 1e9
ALLOWED = 2 * GB
"""Memory above the model's file."""
TOKENS = 32
PROMPT = "The capital of France is"
END = "<|endoftext|>"
SETTINGS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "max_position_embeddings": 131072}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {  # Llama 3.2 1B
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "tie_word_embeddings": True, "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-moe-3b": {  # as Qwen3-30B-A3B, with half its width, half its experts and half its layers
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
        "hidden_size": 1024, "intermediate_size": 3072, "moe_intermediate_size": 512, "num_hidden_layers": 26,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "tie_word_embeddings": False, "rope_theta": 1000000.0,
    },
    "tiny": {  # to try this program
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "tie_word_embeddings": True, "rope_theta": 10000.0,
    },
    "tiny-moe": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 2048, "hidden_size": 128,
        "intermediate_size": 256, "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False, "rope_theta": 10000.0,
    },
}  # fmt: skip


def shards(config: Mapping[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors of each shard."""
    width, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    dim, words = config["hidden_size"], config["vocab_size"]
    yield {"model.embed_tokens.weight": (words, dim)}
    for layer in range(config["num_hidden_layers"]):
        one: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (dim,),
            "post_attention_layernorm.weight": (dim,),
            "self_attn.q_proj.weight": (width, dim),
            "self_attn.k_proj.weight": (kv, dim),
            "self_attn.v_proj.weight": (kv, dim),
            "self_attn.o_proj.weight": (dim, width),
        }
        if "num_experts" in config:
            hidden = config["moe_intermediate_size"]
            one |= {"self_attn.q_norm.weight": (config["head_dim"],), "self_attn.k_norm.weight": (config["head_dim"],)}
            one["mlp.gate.weight"] = (config["num_experts"], dim)
            parts = [f"mlp.experts.{e}" for e in range(config["num_experts"])]
        else:
            hidden, parts = config["intermediate_size"], ["mlp"]
        for part in parts:
            one |= {f"{part}.{name}_proj.weight": (hidden, dim) for name in ("gate", "up")}
            one[f"{part}.down_proj.weight"] = (dim, hidden)
        yield {f"model.layers.{layer}.{name}": shape for name, shape in one.items()}
    last: dict[str, tuple[int, ...]] = {"model.norm.weight": (dim,)}
    if not config["tie_word_embeddings"]:
        last["lm_head.weight"] = (words, dim)
    yield last


def draw(name: str, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Draw a tensor in bfloat16: norms 1, matrices so that a normed input gives outputs of about unit size."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    std = 0.02 if "embed" in name or "lm_head" in name else shape[1] ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, std, generator=draws)


def tokenizer() -> Tokenizer:
    """Return a tokenizer of single bytes, with an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def write_model(folder: Path, config: Mapping[str, Any]) -> int:
    """Write a random model as a Hugging Face folder, one shard at a time; return the bytes of its weights."""
    folder.mkdir(parents=True)
    draws, total = torch.Generator().manual_seed(0), 0
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards(config)):
        name = f"model-{number:05d}.safetensors"
        values = {tensor: draw(tensor, shape, draws) for tensor, shape in tensors.items()}
        save_file(values, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(values, name)
        total += (folder / name).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    own, end = tokenizer(), {"eos_token": END}
    settings = {**SETTINGS, **config, "eos_token_id": own.token_to_id(END)}
    for file, content in (
        ("config.json", settings), ("model.safetensors.index.json", index), ("tokenizer_config.json", end),
    ):  # fmt: skip
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    own.save(str(folder / "tokenizer.json"))
    return total


@dataclass(frozen=True)
class Measured:
    """One command."""

    what: str
    seconds: float
    resident: int
    """Peak in bytes, pages of mapped files included."""
    own: int
    """Peak in bytes of pages that belong to the process alone."""
    disk: int = 0
    """Bytes that it wrote."""


def measure(what: str, arguments: Sequence[str], folder: Path, threads: int) -> Measured:
    """Run `adaptive` in `folder` and watch its memory.

    Raises:
        RuntimeError: The command failed; the message ends with its output.
    """
    command = [sys.executable, "-m", "adaptive_lm.serve", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        resident = own = 0
        while process.poll() is None:
            status = memory_of(process.pid)
            resident, own = max(resident, status.get("VmHWM", 0)), max(own, status.get("RssAnon", 0))
            time.sleep(0.02)
    text = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
    print(f"--- {' '.join(arguments)}\n{text[-1500:]}", file=sys.stderr, flush=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{text[-3000:]}")
    return Measured(what, time.perf_counter() - started, resident, own)


def size_of(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(name: str, precisions: Sequence[str], folder: Path, threads: int) -> tuple[int, list[Measured]]:
    """Take one model through the whole chain; return the bytes of its file, and what each command took."""
    file = write_model(folder / "source", SHAPES[name])
    rows = [measure("import", ["import", "source", "--name", "big", "--context", "2048"], folder, threads)]
    shutil.rmtree(folder / "source")
    rows[0] = Measured(**{**vars(rows[0]), "disk": size_of(folder / "runs")})
    for precision in precisions:
        quantize = [] if precision == "fp32" else ["--quantize", precision]
        out = folder / "model"
        command = ["export", "big", "--onnx", "--out", str(out), "--threads", str(threads), *quantize]
        exported = measure(f"export {precision}", command, folder, threads)
        rows.append(Measured(**{**vars(exported), "disk": size_of(out)}))
        for target in ("portable", "cpu"):
            command = ["generate", PROMPT, "--model", str(out), "--max-new-tokens", str(TOKENS), "--target", target]
            rows.append(measure(f"{TOKENS} tokens, {precision}, {target}", command, folder, threads))
        shutil.rmtree(out)
    return file, rows


def table(name: str, file: int, rows: Sequence[Measured]) -> str:
    """Return a table for the documentation."""
    lines = [
        f"**{name}**: file {file / GB:.2f} GB, allowed {(file + ALLOWED) / GB:.2f} GB",
        "",
        "| step | seconds | resident, GB | own, GB | written, GB | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        fits = "" if row.resident <= file + ALLOWED else "own memory fits" if row.own <= file + ALLOWED else "TOO MUCH"
        disk = f"{row.disk / GB:.2f}" if row.disk else ""
        lines.append(
            f"| {row.what} | {row.seconds:.0f} | {row.resident / GB:.2f} | {row.own / GB:.2f} | {disk} | {fits} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the models that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["llama-1b", "qwen3-moe-3b"], choices=[*SHAPES, []])
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("--folder", type=Path, help="where to work; by default the folder of temporary files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="adaptive-big-", dir=options.folder) as folder:
            file, rows = run(name, options.precision or ["int4", "int8"], Path(folder), options.threads)
            print(f"{table(name, file, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
