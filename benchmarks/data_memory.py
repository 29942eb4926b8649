"""How much memory it takes to prepare a text larger than one would want in memory, and how long.

    python benchmarks/data_memory.py [--gigabytes 2] [--tokenizer bytes --tokenizer bpe] [--folder FOLDER]

A text of made-up words is written to a temporary folder (which needs four times its size free), prepared by a process
of its own, and 200 batches are drawn from it; then all this once more with the cache filled. Printed are seconds and
the peak resident memory. Mapped tokens that were touched count as resident although the system takes them back when it
wants to; they are shown apart.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 16  # every block of lines is written so often; drawing words takes longer than reading them

CHILD = """
import json, sys, time
started = time.perf_counter()
from adaptive_lm.train.data import DataConfig, TokenizerConfig, prepare

def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

imported = memory("VmRSS")
started = time.perf_counter()
data = DataConfig(sources=(sys.argv[1],), cache_dir=sys.argv[2])
corpus = prepare(data, TokenizerConfig(kind=sys.argv[3]), seed=0)
prepared = time.perf_counter()
peak = memory("VmHWM")
for step in range(200):
    corpus.batch(step * 32, 32, 256)
drawn = time.perf_counter()
print(json.dumps({
    "seconds": prepared - started, "imported_bytes": imported, "peak_bytes": peak,
    "tokens": corpus.train_tokens + corpus.val_tokens,
    "batch_milliseconds": (drawn - prepared) / 200 * 1000,
    "after_batches_own_bytes": memory("RssAnon"), "after_batches_mapped_bytes": memory("RssFile"),
}))
"""


def write_text(path: Path, size: int) -> None:
    """`size` bytes of lines of words whose frequencies fall as those of a language do (Zipf), from seed 0."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(20_000)]
    cumulative = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            lines = (" ".join(rng.choices(words, cum_weights=cumulative, k=12)) for _ in range(5000))
            block = ("\n".join(lines) + "\n").encode()
            file.write((block * REPEATS)[:left])


def main() -> None:
    """Measures each tokenizer in a fresh cache, then in the filled one (`again`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--tokenizer", action="append", choices=["bytes", "chars", "words", "bpe"])
    parser.add_argument("--folder", help="where to write; by default the system's folder for temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        text = Path(name) / "text.txt"
        started = time.perf_counter()
        write_text(text, int(arguments.gigabytes * 1e9))
        print(f"{text.stat().st_size / 1e9:.2f} GB written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for tokenizer in arguments.tokenizer or ["bytes", "bpe"]:
            with tempfile.TemporaryDirectory(dir=name) as cache:
                for again in (False, True):
                    found = subprocess.run(
                        [sys.executable, "-c", CHILD, str(text), cache, tokenizer], stdout=subprocess.PIPE, check=True
                    )
                    print(json.dumps({"tokenizer": tokenizer, "again": again, **json.loads(found.stdout)}), flush=True)


if __name__ == "__main__":
    main()
