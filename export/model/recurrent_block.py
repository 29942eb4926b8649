"""One layer whose mixer has a recurrent state in place of attention. Mirrors `train/model/block.py`.

N tokens, n of them in this layer, D width, H heads, X columns that a layer reports of a token.
"""

from collections.abc import Sequence

from ..graph.builder import FLOAT, Graph
from .attention.attention import Attended
from .block import Block, LayerInputs, LayerOutputs
from .mixers.build import mix
from .mixers.steps import States, Steps, some_tokens
from .routing.depth import DepthRoutes


class RecurrentBlock(Block):
    """The operators of one layer.

    Tokens that skip it leave its states as they are, under both policies of `skipped_kv`: a state has no place for a
    token that writes to it and does not read it.
    """

    def write(self, g: Graph, x: str, alive: str | None, inputs: LayerInputs) -> LayerOutputs:
        """Write the layer for x (N, D); alive (N, 1) bool is None before the first exit."""
        runs, depth = self._runs(g, x, alive, inputs)
        if runs is not None:
            return self._skippable(g, x, runs, depth, inputs)
        out, chosen, states = self._layer(g, x, self._steps(), inputs)
        for name, result in zip(states.names, inputs.after.names, strict=True):
            g.op("Identity", name, result=result)
        return LayerOutputs(out, None, chosen)

    def _skippable(self, g: Graph, x: str, runs: str, depth: DepthRoutes | None, inputs: LayerInputs) -> LayerOutputs:
        """Write the layer inside its `If`, for the tokens that run it; without any, x and the states pass through."""
        rows, someone = self._rows(g, runs)

        def run(b: Graph) -> Sequence[str]:
            own = b.op("Gather", x, rows, axis=0)  # (n, D)
            steps = some_tokens(b, rows, self.batch.one_sequence, self._steps())
            out, chosen, states = self._layer(b, own, steps, self._of_rows(b, inputs, rows))
            return [*self._scattered(b, x, rows, own, out, chosen, depth), *states.names]

        def skip(b: Graph) -> Sequence[str]:
            return [x, self._zeros(b), *inputs.before.names]

        names = inputs.after.names
        out, chosen, *_ = g.branch(someone, "run", [FLOAT] * (2 + len(names)), run, skip, results=("", "", *names))
        return LayerOutputs(out, runs, chosen)

    def _layer(self, g: Graph, x: str, steps: Steps, inputs: LayerInputs) -> tuple[str, str, States]:
        """Write h = x + mixer(norm(x)); out = h + moe(norm(h)): (n, D) -> (n, D), chosen (n, X), and the states."""
        normed = self._norm(g, x, "attention_norm")
        mixed = mix(g, self.weights, self.config, self.layer, normed, steps, inputs.before)
        no_heads = self.config.heads.routing != "all"
        choices = [self._column(g, x, 0.0, self.config.num_heads)] if no_heads else []
        out, chosen = self._feed_forward(g, x, Attended(mixed.out, choices), inputs)
        return out, chosen, mixed.states

    def _steps(self) -> Steps:
        assert self.batch.steps is not None
        return self.batch.steps._replace(rotary=self.batch.attention.rotary[self.layer])
