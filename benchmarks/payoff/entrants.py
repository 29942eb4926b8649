"""The models that the benchmark `pays` compares, and the settings that they train with.

Every adaptive model uses as many weights per token as the dense one of its size: two of eight experts of half its
hidden width. Smaller sizes compete too, since fewer weights make more steps in the same time. The recipe is the same
for all: Muon for matrices and AdamW for the rest at the rates of decision 0008, a rate that falls linearly over the
last 60 % of the steps, compiled blocks where the size is worth it.
"""

from typing import Any, NamedTuple

from payoff.text import Texts


class Size(NamedTuple):
    """The shape that the models share, and their batches."""

    dim: int
    layers: int
    heads: int
    hidden: int
    """Hidden width of the dense model; an expert has half of it."""
    half: tuple[int, int, int, int]
    """Width, layers, heads and hidden width of the models of half the weights."""
    third: tuple[int, int, int, int]
    """The same of the dense model of a third of the weights."""
    context: int
    batch: int
    """Sequences per step."""
    vocabulary: int
    compiled: bool = True

    def active(self, hidden: int | None = None) -> int:
        """Count the weights that a token multiplies, at a hidden width."""
        return active_weights(self.dim, self.layers, hidden or self.hidden, self.vocabulary)


SIZES = {
    "10m": Size(320, 6, 5, 896, (256, 4, 4, 704), (192, 4, 3, 512), context=256, batch=16, vocabulary=8192),
    "3m": Size(192, 4, 3, 512, (128, 4, 2, 352), (96, 4, 2, 256), context=256, batch=16, vocabulary=8192),
    "tiny": Size(32, 3, 2, 64, (32, 2, 2, 32), (32, 1, 2, 32), context=32, batch=4, vocabulary=300, compiled=False),
}
"""`3m` shows the direction in which a smaller size moves the answer; `tiny` is for the test."""

EXPERTS, USED = 8, 2
DENSE, EQUAL, HALF, THIRD = "dense", "dense, equal time", "dense, half", "dense, third"
TOP2, TOP_P, DEPTH, EXITS = "top-2 of 8", "top-p of 8", "top-p + depth", "top-p + exits"
TOP_P_HALF = "top-p of 8, half"
ADAPTIVE = (TOP2, TOP_P, DEPTH, EXITS, TOP_P_HALF)
DENSE_MODELS = (DENSE, EQUAL, HALF, THIRD)
DIALED = (TOP_P, DEPTH, EXITS, TOP_P_HALF)
"""Those with thresholds, which a calibration can move after training."""
ENTRANTS = (TOP_P, DEPTH, TOP2, EXITS, DENSE, EQUAL, HALF, TOP_P_HALF, THIRD)
"""In the order of training: the adaptive ones take the same half hour, so pairs end together."""


def active_weights(dim: int, layers: int, hidden: int, vocabulary: int) -> int:
    """Count the weights of the matrices that a token multiplies: attention, hidden layers and output head."""
    return layers * (4 * dim * dim + 3 * dim * hidden) + vocabulary * dim


def recipe(entrant: str, size: Size, texts: Texts, equal_hidden: int | None = None) -> dict[str, Any]:
    """Return the recipe of an entrant, without its steps and seed.

    Args:
        entrant: One of ENTRANTS.
        size: The shape that all share.
        texts: The text to train on and to score.
        equal_hidden: Hidden width of EQUAL, found by `payoff.twin`.
    """
    dim, layers, heads, hidden = size.dim, size.layers, size.heads, size.hidden
    if entrant in (HALF, TOP_P_HALF):
        dim, layers, heads, hidden = size.half
    if entrant == THIRD:
        dim, layers, heads, hidden = size.third
    if entrant == EQUAL:
        if equal_hidden is None:
            raise ValueError(f"{EQUAL} has no hidden width before it is searched; expected equal_hidden")
        hidden = equal_hidden
    ffn: dict[str, Any] = {"routing": "dense", "dim": hidden}
    if entrant in ADAPTIVE:
        ffn = {
            "routing": "top_k" if entrant == TOP2 else "top_p",
            "num_experts": EXPERTS,
            "expert_dim": hidden // USED,
            "experts_per_token": USED,
        }
    depth: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    if entrant == DEPTH:
        depth = {"layers_share": 0.75}
    if entrant == EXITS:
        # A router decides: the highest probability would need the output head, a quarter of the weights, at each exit.
        # One exit learns per step, in turn, so that the head is multiplied twice and not three times.
        depth = {"exit_layers": exits_of(layers), "exit_criterion": "router"}
        losses = {"exit_curriculum": "rotational"}
    return {
        "data": {
            "sources": [str(texts.train)],
            "val": str(texts.scored),
            "text_field": "text",
            "cache_dir": str(texts.train.parent / "cache"),
        },
        "tokenizer": {"kind": "bpe", "vocab_size": size.vocabulary},
        "model": {
            "context_length": size.context,
            "dim": dim,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": heads,
            "ffn": ffn,
            "depth": depth,
        },
        "losses": losses,
        "trainer": {
            "batch_size": size.batch,
            "threads": 1,
            "compile": size.compiled,
            "max_seconds": None,
            "tensorboard": False,
            "routing_snapshots": 0,
            "eval_every": 10**9,
            "eval_tokens": 4096,
            "final_eval_tokens": 4096,
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "log_every": 50,
        },
    }


def exits_of(layers: int) -> list[int]:
    """Return the layers after which a token may leave: after a third and two thirds of them."""
    return sorted({max(layers // 3 - 1, 0), max(2 * layers // 3 - 1, 0)})


def span(context: int) -> tuple[int, int]:
    """Return the tokens of a timed prompt, and those decoded after it: half of the context together."""
    return context // 8, 3 * context // 8


def run_name(entrant: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{entrant.replace(' + ', '-').replace(', ', '-').replace(' ', '-')}-{seed}"
