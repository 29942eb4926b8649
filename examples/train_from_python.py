"""Train a model from Python: a config, a run, and what it measured on held-out text.

python examples/train_from_python.py my-text.txt --steps 200
"""

import argparse

from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.training import begin


def main() -> None:
    """Train on one file, then print the held-out loss and how many experts a token used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--name", default="from-python")
    options = parser.parse_args()

    # The same keys as in a recipe and in `adaptive train --set`; `adaptive train --print-config` lists them all.
    config = make_config(
        {
            "data": {"sources": [options.file]},
            "tokenizer": {"kind": "chars"},
            "model": {"dim": 64, "num_layers": 2, "context_length": 128, "ffn": {"num_experts": 4, "expert_dim": 96}},
            "trainer": {"steps": options.steps, "max_seconds": None, "log_every": 50},
        }
    )
    outcome = begin(config, named_run(options.name), overwrite=True)

    assert outcome.evaluation is not None
    experts = outcome.evaluation.usage["experts_per_token"]
    print(f"{outcome.run.path}: held-out loss {outcome.evaluation.loss:.3f}, {experts:.2f} of 4 experts per token")


if __name__ == "__main__":
    main()
