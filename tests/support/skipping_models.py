"""Settings of models for the two proofs that what a token does not choose is not computed: by FLOPs and by bytes."""

from typing import Any

SKIPPING: dict[str, dict[str, Any]] = {
    "none": {},
    "project": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}},
    "shared": {"ffn": {"num_experts": 4, "expert_dim": 16, "shared_expert_dim": 8}, "depth": {}},
    "top_k": {"ffn": {"routing": "top_k", "num_experts": 4, "expert_dim": 16, "experts_per_token": 2}},
    "capped": {
        "ffn": {
            "num_experts": 6,
            "expert_dim": 16,
            "most_experts": 3,
            "controller": "fixed",
            "router_top_p": 1.0,
            "dense_layers": [0],
            "dim": 24,
            "shared_expert_dim": 8,
            "shared_gate": True,
            "bias": True,
        }
    },
    "capped up": {
        "ffn": {
            "num_experts": 6,
            "expert_dim": 16,
            "most_experts": 4,
            "gated": False,
            "activation": "gelu",
            "score": "sigmoid",
            "selection_bias": True,
        }
    },
    "heads": {"heads": {"routing": "top_p", "heads_per_token": 2}},
    "cope": {"heads": {"routing": "adaptive"}, "attention": {"positions": "cope", "max_positions": 8, "window": 8}},
}
