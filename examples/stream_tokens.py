"""Stream the answer of an exported model, and print what each token used.

python examples/stream_tokens.py runs/demo/model "How do mountains form?"
"""

import sys

from adaptive_lm.runtime import Params, load


def main(folder: str, question: str) -> None:
    """Print one line per token: its text, its experts in each layer, and its share of the dense FLOPs."""
    engine = load(folder)
    prompt = engine.chat([{"role": "user", "content": question}])
    for token in engine.generate(prompt, Params(temperature=0, max_new_tokens=64)):
        usage = token.usage
        experts = " | ".join(",".join(map(str, layer)) or "-" for layer in usage.experts)
        print(f"{token.text!r:16} {experts:32} {usage.flops_share:5.0%} {1000 * token.seconds:6.2f} ms", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
