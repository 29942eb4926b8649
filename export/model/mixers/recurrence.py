"""The recurrence of all mixers with a state. Mirrors `train/model/mixers/recurrence.py`; all of it is float32.

For each head, with the state S (V, K), the tokens one after another:

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T;   o_t = S_t r_t

n rows, M sequences with rows, H heads, V width of values, K width of keys. A head axis of 1 stands for all heads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...graph.builder import FLOAT, Graph
from .steps import Steps


class Terms(NamedTuple):
    """What the tokens give to the recurrence, in shapes that broadcast with the state."""

    w: str  # (n, H, 1, K) or (n, H, 1, 1); or (H, 1, 1), the same for every token
    v: str  # (n, H, V, 1)
    k: str  # (n, H, 1, K)
    r: str  # (n, H, K, 1)
    a: str = ""  # (n, H, K, 1); "" without that term
    b: str = ""  # (n, H, 1, K)
    fixed: bool = False  # whether w is the same for every token


def recurrence(g: Graph, terms: Terms, steps: Steps, past: str, heads: int, width: int) -> tuple[str, str]:
    """Run the recurrence from the states of M sequences, (M, H, V, K).

    A single token takes a handful of nodes. A prompt runs the same nodes in a `Scan` over its rows, so that a token
    has the same bits in both.

    Returns:
        The outputs (n, H, V), and the states after the last row of each sequence (M, H, V, K).
    """

    def one(b: Graph) -> Sequence[str]:
        return _step(b, past, terms)

    def many(b: Graph) -> Sequence[str]:
        by_token = _by_token(terms)

        def body(s: Graph, states: Sequence[str], inputs: Sequence[str]) -> Sequence[str]:
            one: dict[str, Any] = dict(zip(by_token, inputs, strict=True))
            out, state = _step(s, states[0], terms._replace(**one))
            return [state, out]

        state, out = b.scan("tokens", [past], list(by_token.values()), 1, body)
        return [b.op("Reshape", out, b.int64(-1, heads, width, 1)), state]  # from (n, 1, H, V, 1)

    out, state = g.branch(steps.single, "recurrence", [FLOAT] * 2, one, many)
    return g.op("Squeeze", out, g.int64(3)), state


def _by_token(terms: Terms) -> dict[str, str]:
    """Return the terms of which each token has its own, by name."""
    names = [*([] if terms.fixed else ["w"]), "v", "k", "r", *(["a", "b"] if terms.a else [])]
    return {name: getattr(terms, name) for name in names}


def _step(g: Graph, state: str, terms: Terms) -> tuple[str, str]:
    """Compute one token of each sequence: the outputs (M, H, V, 1) and the states (M, H, V, K)."""
    new = g.op("Mul", state, terms.w, name="decay")
    if terms.a:
        product = g.op("MatMul", state, terms.a)  # (M, H, V, 1)
        new = g.op("Add", new, g.op("Mul", product, terms.b))
    new = g.op("Add", new, g.op("Mul", terms.v, terms.k), name="state")
    return g.op("MatMul", new, terms.r, name="read"), new
