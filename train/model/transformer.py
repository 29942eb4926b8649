"""The language model. B batch, T time, N = B*T tokens, D width, L layers, E experts, V vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..system.collectives import drawn_for_all, gathered
from .attention.rope import RotaryTables
from .block import Block, Levels
from .config.model import ModelConfig
from .experts.moe import MoE
from .initialization import initialize
from .linear import Linear
from .norm import state_norm
from .output import ModelOutput, ThresholdTensors
from .routing.controllers import PIController
from .routing.depth import dropout_rates
from .routing.exits import ExitRouter, confidence
from .routing.thresholded_router import Thresholded

GRAPHS_PER_BLOCK = 8
"""Most compiled graphs of a block, one for each length of sequences and each mode; as torch allows a function."""


class Transformer(nn.Module):
    """A decoder whose tokens choose heads, experts and layers. Weights are drawn from torch's global generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.vocab_size:
            raise ValueError("vocab_size is 0: fill it from the tokenizer before building the model")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        positions = torch.empty(config.context_length, config.dim)
        self.learned_positions = nn.Parameter(positions) if config.has_learned_positions else None  # (context, D)
        self.layers = nn.ModuleList()
        for layer in range(config.num_layers):
            source = config.recursion.source_of(layer)
            repeated = self.layers[source] if source != layer else None
            assert repeated is None or isinstance(repeated, Block)
            self.layers.append(Block(config, layer, repeated))
        self.norm = state_norm(config)
        self.head = Linear(config.dim, config.vocab_size)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        learned = config.depth.exit_layers if config.depth.exit_criterion == "router" else ()
        self.exit_routers = nn.ModuleDict({str(layer): ExitRouter(config.dim) for layer in learned})
        sections = {"experts": config.ffn, "heads": config.heads, "depth": config.depth}
        shared = [name for name, section in sections.items() if section.scope == "model"]
        self.pi = nn.ModuleDict(
            {name: PIController(self.routers(name)[0].set_level, sections[name].pi_gains) for name in shared}
        )
        self.layer_dropout = config.depth.layer_dropout
        ropes = config.ropes
        self.rotary = nn.ModuleList(RotaryTables(config, rope) for rope in ropes)
        by_layer = [config.rope_of(layer) for layer in range(config.num_layers)]
        self.rotary_of = [None if rope is None else ropes.index(rope) for rope in by_layer]
        initialize(self)

    def forward(
        self,
        ids: Tensor,
        thresholds: ThresholdTensors | None = None,
        checkpoint_activations: bool = False,
        measures: bool = False,
        state_layers: Sequence[int] = (),
        tasks: Tensor | None = None,
    ) -> ModelOutput:
        """Run the model.

        Args:
            ids: (B, T) int64.
            thresholds: None takes those of the controllers, and no token leaves early.
            checkpoint_activations: Whether the backward pass computes most activations again; only in training.
            measures: Whether to fill in `residual_rms`.
            state_layers: The layers after which `layer_states` has the state; any may be named twice.
            tasks: (B,) int64, the task of each sequence, which gates per task need; None leaves their biases out.

        Raises:
            ValueError: The sequence is longer than the context.
        """
        time = ids.shape[1]
        if time > self.config.context_length:
            raise ValueError(f"a sequence of {time} tokens does not fit the context of {self.config.context_length}")
        leaves = thresholds is not None
        limits = thresholds or self.default_thresholds()
        tables = [table(time) for table in self.rotary]
        x = self.embed(ids)  # (B, T, D)
        alive = going = torch.ones_like(ids, dtype=torch.bool)  # going: ran the last repetition
        exit_layer = torch.full_like(ids, -1)
        dropped = self._dropped(ids.shape[0])
        drawn = self._drawn_experts(ids.numel())
        gated = tasks is not None and self.config.ffn.task_bias
        task = tasks.repeat_interleave(time) if gated and tasks is not None else None  # (N,)
        routing, exit_hidden, exit_confidence = [], {}, {}
        residual_rms: list[Tensor] = []
        states: dict[int, Tensor] = {}
        for i, block in enumerate(self.layers):
            ratio = None if limits.router_ratio is None else limits.router_ratio[i]
            levels = Levels(limits.router_top_p[i], limits.depth_threshold[i], limits.head_top_p[i], ratio)
            if drawn is not None:
                levels = levels._replace(random_experts=drawn[i])
            if task is not None:
                levels = levels._replace(task=task)
            here = alive if dropped is None else alive & ~dropped[i, :, None]
            if self.config.follows_router(i):
                here = here & going
            table = self.rotary_of[i]
            rotary = None if table is None else tables[table]
            x, layer = block(x, here, rotary, levels, recompute=checkpoint_activations and self.training)
            routing.append(layer)
            if i in state_layers:
                states[i] = x
            going = layer.runs.view(alive.shape) if self.config.has_depth_router(i) else going
            if measures:
                residual_rms.append(x.detach().float().square().mean().sqrt())
            if i in self.config.depth.exit_layers:
                exit_hidden[i] = self.norm(x)
                if leaves:
                    exit_confidence[i] = self._confidence(i, exit_hidden[i])  # (B, T)
                    exits = alive & (exit_confidence[i] > limits.exit_threshold[i])
                    exit_layer = torch.where(exits, i, exit_layer)
                    alive = alive & ~exits
        hidden = self.norm(x)
        logits = self.logits(hidden)
        return ModelOutput(
            logits, routing, exit_hidden, exit_confidence, exit_layer, hidden, tuple(residual_rms),
            tuple(states[layer] for layer in state_layers),
        )  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of a normed state (..., D), (..., V), within the softcap where there is one."""
        logits: Tensor = self.head(hidden)
        cap = self.config.logits_softcap
        return cap * (logits / cap).tanh() if cap else logits

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) -> (B, T, D), with learned positions where the model has them."""
        x: Tensor = self.embedding(ids).float()
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        return x if self.learned_positions is None else x + self.learned_positions[: ids.shape[1]]

    def default_thresholds(self) -> ThresholdTensors:
        """Return the current levels of the controllers and no early exit, as in training and in an exported model."""
        ones = torch.ones(self.config.num_layers, device=self._device())

        def levels(kind: str, otherwise: Tensor) -> Tensor:
            shared = self.pi[kind] if kind in self.pi else None  # noqa: SIM401 - a ModuleDict has no get
            assert shared is None or isinstance(shared, PIController)
            routers = [router_of(block, kind) for block in self.blocks()]
            return torch.stack([otherwise if router is None else router.level(shared) for router in routers])

        return ThresholdTensors(
            levels("experts", ones[0]), levels("depth", 0 * ones[0]), ones, levels("heads", ones[0]),
            0 * ones if self.config.dials_ratio else None,
        )  # fmt: skip

    def _device(self) -> torch.device:
        """Return the device of the model. The embedding tells it not, since it may be read from a file in pieces."""
        return next(self.norm.parameters()).device

    def set_sparsity(self, sparsity: float) -> None:
        """Set how sparse the default thresholds are: 0 runs everything, 1 the averages of the config, above 1 less.

        A schedule from dense to sparse calls it; it is not part of a checkpoint.
        """
        for kind in ("experts", "heads", "depth"):
            for router in self.routers(kind):
                router.sparsity = sparsity

    def set_layer_dropout(self, rate: float) -> None:
        """Set the share of the training sequences that leave out the last layer; earlier layers have lower rates."""
        self.layer_dropout = rate

    @torch.no_grad()
    def observe(self, out: ModelOutput, counted: Tensor | None = None) -> None:
        """Show a batch to the controllers; call it once after each training batch, never in evaluation.

        Args:
            out: The output of the batch.
            counted: (B, T) bool, the tokens to show, without padding; None for all.
        """
        shown = torch.ones_like(out.routing[0].runs) if counted is None else counted.flatten()
        arrived = shown  # tokens that a repetition could run
        errors: dict[str, list[Tensor | None]] = {"experts": [], "heads": [], "depth": []}
        for number, (block, layer) in enumerate(zip(self.blocks(), out.routing, strict=True)):
            here, attention = layer.runs & shown, block.attention
            if layer.depth is not None and block.depth_router is not None:
                errors["depth"].append(block.depth_router.observe_routes(layer.depth, arrived))
                arrived = here if self.config.follows_router(number) else shown
            if layer.routes is not None and block.moe is not None:
                errors["experts"].append(block.moe.router.observe_routes(layer.routes, here))
            if attention is None:
                continue
            if layer.heads is not None and attention.head_router is not None:
                errors["heads"].append(attention.head_router.observe_routes(layer.heads, here))
            if layer.windows is not None and layer.windows.spread is not None and attention.window_controller:
                attention.window_controller.observe(gathered(layer.windows.spread[here]))
        for kind, controller in self.pi.items():
            seen = [error for error in errors[kind] if error is not None]
            if seen and isinstance(controller, PIController):
                controller.observe(torch.stack(seen).mean())

    def _dropped(self, batch: int) -> Tensor | None:
        """Draw which sequences leave out which layers, (L, B) bool; None without layer dropout."""
        if not (self.training and self.layer_dropout):
            return None
        rates = torch.tensor(dropout_rates(self.layer_dropout, self.config.num_layers), device=self._device())
        return drawn_for_all(batch, len(rates), rates.device) < rates[:, None]

    def _drawn_experts(self, tokens: int) -> Tensor | None:
        """Draw how many experts each token may run in each layer, (L, N) int64; None without `random_experts`."""
        limits = self.config.ffn.random_experts
        if not self.training or limits is None:
            return None
        least, most = limits
        drawn = drawn_for_all(tokens, self.config.num_layers, self._device())
        return (least + drawn * (most - least + 1)).long().clamp(max=most)

    def _confidence(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the confidence after a layer, (B, T) float32, from its normed state (B, T, D)."""
        criterion = self.config.depth.exit_criterion
        if criterion == "router":
            scores: Tensor = self.exit_routers[str(layer)](hidden)
            return scores
        return confidence(criterion, self.logits(hidden))

    def use_onednn(self, *, linear: bool, experts: bool) -> None:
        """Choose whether oneDNN multiplies the matrices of linear layers and of experts; for float32 on a CPU."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.onednn = linear
            elif isinstance(module, MoE):
                module.onednn = experts

    def compile_blocks(self) -> None:
        """Compile each block without a graph break; blocks of one shape share their code.

        torch limits the graphs of a function, and all blocks are one: a model may need as many for each layer.
        """
        from torch._dynamo import config as limits  # it takes a second to import

        limits.recompile_limit = max(limits.recompile_limit, GRAPHS_PER_BLOCK * len(self.layers))
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
        for block in self.layers:
            block.compile(fullgraph=True, dynamic=False)

    def blocks(self) -> list[Block]:
        """Return the layers, typed."""
        return [block for block in self.layers if isinstance(block, Block)]

    def routers(self, kind: str) -> list[Thresholded]:
        """Return the routers of a kind (experts, heads, depth), from the layers that have one."""
        routers = [router_of(block, kind) for block in self.blocks()]
        return [router for router in routers if router is not None]


def router_of(block: Block, kind: str) -> Thresholded | None:
    """Return the router of a kind (experts, heads, depth) in a block; None where it has none."""
    if kind == "experts":
        return block.moe.router if block.moe is not None else None
    if kind == "heads":
        return block.attention.head_router if block.attention is not None else None
    return block.depth_router
