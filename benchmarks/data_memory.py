"""Time and memory for preparing a text that is too large to load.

    python benchmarks/data_memory.py [--gigabytes 2] [--tokenizer bytes --tokenizer bpe] [--folder FOLDER]

A text of made-up words is written to a temporary folder, which needs four times its size free. A separate process
prepares it and draws 200 batches, first with an empty cache, then with the filled one. The output is seconds and peak
resident memory. Memory-mapped tokens count as resident once read, although the system can reclaim them at any time;
they are listed separately.
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

REPEATS = 16  # copies of every block of lines, since drawing words takes longer than reading them

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
    """Write `size` bytes of lines of words with the frequencies of a language (Zipf), from seed 0."""
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
    """Measure each tokenizer with an empty cache, then with the filled one (`again`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the text (default: 2)")
    parser.add_argument(
        "--tokenizer",
        action="append",
        choices=["bytes", "chars", "words", "bpe"],
        help="may be repeated (default: bytes and bpe)",
    )
    parser.add_argument("--folder", help="where to write (default: the system's folder for temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        text = Path(name) / "text.txt"
        started = time.perf_counter()
        write_text(text, int(arguments.gigabytes * 1e9))
        print(f"{text.stat().st_size / 1e9:.2f} GB written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for tokenizer in arguments.tokenizer or ["bytes", "bpe"]:
            with tempfile.TemporaryDirectory(dir=name) as cache:
                for again in (False, True):
                    done = subprocess.run(
                        [sys.executable, "-c", CHILD, str(text), cache, tokenizer], stdout=subprocess.PIPE, check=True
                    )
                    print(json.dumps({"tokenizer": tokenizer, "again": again, **json.loads(done.stdout)}), flush=True)


if __name__ == "__main__":
    main()
