"""The inputs and outputs of the graph of our operators: those of every graph, with slots.

B rows of ids, T time, N = B*T tokens, S slots, L layers, R tokens whose logits are computed, V vocabulary. A slot of
the caches holds one sequence. The rows of a slot stand in the order of its text, anywhere among those of other slots,
and thresholds are given by row, so that one pass computes parts of prompts and single tokens of many sequences.
"""

from ...runtime.format.manifest import KV
from ...train.model.config.model import ModelConfig
from ..graph.builder import INT64
from ..graph.proto import Signature
from ..model import signature


def graph_inputs(config: ModelConfig, kv: KV = "fp32") -> Signature:
    """Return the element type and shape of each input, by name."""
    inputs: Signature = {}
    for name, entry in signature.graph_inputs(config, kv).items():
        if name == "lengths":
            inputs |= {"slots": (INT64, ["B"]), "lengths": (INT64, [config.num_layers, "S"])}
        elif name == "num_logits":
            inputs["logit_rows"] = (INT64, ["R"])
        else:
            inputs[name] = _by_slot(name, entry)
    return inputs


def graph_outputs(config: ModelConfig, kv: KV = "fp32", *, hidden: bool = False) -> Signature:
    """Return the element type and shape of each output, by name; the hidden states among them where asked for."""
    signatures = signature.graph_outputs(config, kv, hidden=hidden)
    outputs = {name: _by_slot(name, entry) for name, entry in signatures.items()}
    outputs["logits"] = (outputs["logits"][0], ["R", config.vocab_size])
    outputs["new_lengths"] = (INT64, [config.num_layers, "S"])
    return outputs


def _by_slot(name: str, entry: tuple[int, list[str | int]]) -> tuple[int, list[str | int]]:
    """Return the entry of a cache with one part for each slot, and any other as it is."""
    return (entry[0], ["S", *entry[1][1:]]) if name.startswith(("past_", "present_")) else entry
