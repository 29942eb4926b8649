"""The whole line on your own text: train, export, generate at two settings of the dial.

python examples/your_own_text.py my-text.txt --steps 400
"""

import argparse

from adaptive_lm.export.exporter import run_export
from adaptive_lm.runtime import Params, load
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.training import begin


def main() -> None:
    """Continue a prompt with all experts that the router wants, and with one expert per token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prompt", default="The ")
    options = parser.parse_args()

    config = make_config(
        {"data": {"sources": [options.file]}, "tokenizer": {"kind": "chars"}},
        [{"model": {"dim": 64, "num_layers": 2}}, {"trainer": {"steps": options.steps}}],
    )
    run = named_run("own-text")
    begin(config, run, overwrite=True)
    exported = run_export(str(run.path))  # refuses to write a graph that decides differently from torch

    engine = load(exported.folder)
    for experts in (None, 1.0):  # as trained, and one expert per token on average
        params = Params(experts=experts, temperature=0, max_new_tokens=40)
        tokens = list(engine.generate(options.prompt, params))
        share = sum(token.usage.flops_share for token in tokens) / len(tokens)
        print(f"{share:4.0%} of the FLOPs: {options.prompt}{''.join(token.text for token in tokens)!r}")


if __name__ == "__main__":
    main()
