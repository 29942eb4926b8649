"""The rows of a layer as steps of their sequences, and what the layer remembers of these.

B sequences, N tokens, n rows (tokens of this layer), M sequences with rows, H heads, V values, K keys, C channels.
"""

from typing import NamedTuple

from ...graph.builder import Graph


class Steps(NamedTuple):
    """How the n rows of a layer continue their sequences.

    In a prompt one sequence has all n rows, in their order (M = 1). In a batch of single tokens each row is the one
    step of a sequence of its own (M = n), and a sequence that skips the layer has none.
    """

    single: str  # (1,) bool: each row is the only one of its sequence
    number: str  # (1,) int64: M
    sequences: str | None  # (M,) int64: the sequences with rows; None for all of them, in their order
    positions: str  # (n,) int64: places of the rows in their texts; "" in a layer without rotary positions
    rotary: tuple[str, str] | None = None  # the tables cos and sin of the layer


class States(NamedTuple):
    """What a layer remembers: `state` (B, H, V, K), and `conv` (B, C, inputs), the last inputs of its convolution."""

    state: str
    conv: str = ""

    @property
    def names(self) -> list[str]:
        """The values that there are."""
        return [name for name in self if name]


class Mixed(NamedTuple):
    """The output of a mixer, and the states after it."""

    out: str  # (n, D)
    states: States


def every_token(g: Graph, size: str, time: str, positions: str) -> Steps:
    """Return the steps of a layer that all tokens run, from B and T, (1,) int64, and positions (N,)."""
    return Steps(g.op("Equal", time, g.int64(1), name="single"), size, None, positions)


def some_tokens(g: Graph, rows: str, one_sequence: str, every: Steps) -> Steps:
    """Return the steps of the tokens `rows` (n,) int64 among every one; `one_sequence` (1,) bool is whether B is 1."""
    count = g.op("Shape", rows)
    alone = g.op("Equal", count, g.int64(1))
    single = g.op("Or", g.op("Not", one_sequence), alone, name="single")
    number = g.op("Where", single, count, g.int64(1))
    sequences = g.op("Slice", g.op("Where", one_sequence, g.int64(0), rows), g.int64(0), number)
    positions = "" if every.rotary is None else g.op("Gather", every.positions, rows, axis=0)
    return Steps(single, number, sequences, positions, every.rotary)


def recall(g: Graph, steps: Steps, past: str) -> str:
    """Return what the layer remembers of the M sequences that have rows: (B, ...) -> (M, ...)."""
    return past if steps.sequences is None else g.op("Gather", past, steps.sequences, axis=0, name="recall")


def remember(g: Graph, steps: Steps, past: str, new: str) -> str:
    """Put the memory of M sequences back among all: (M, ...) -> (B, ...); the others keep what they had.

    It is written in place where the caller binds past and present to one buffer.
    """
    if steps.sequences is None:
        return new
    return g.op("ScatterND", past, g.op("Unsqueeze", steps.sequences, g.int64(1)), new, name="remember")
