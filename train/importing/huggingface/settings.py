"""The settings in a `config.json`, read with their types, and account kept of those that were read."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ForeignFileError, UnsupportedModelError, short

HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "embedding_dropout",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "layer_types",
        "max_length",
        "max_window_layers",
        "model_type",
        "n_ctx",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "return_dict_in_generate",
        "reorder_and_upcast_attn",
        "rope_interleaved",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "scale_attn_by_inverse_layer_idx",
        "seq_aux",
        "sliding_window",
        "sliding_window_pattern",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "text_model",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "use_mrope",
        "use_sliding_window",
    }
)
"""Fields of the format itself, of training, or read elsewhere; they change nothing that is computed."""
MISSING_FEATURES: Mapping[str, str] = {
    "quantization_config": "weights that are stored quantised",
    "clip_qkv": "clipping of queries, keys and values",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "conv_L_cache": "short convolutions",
    "ssm_cfg": "state space layers",
    "mamba_d_state": "state space layers",
    "linear_num_key_heads": "linear attention layers",
    "num_nextn_predict_layers": "layers that predict further tokens",
    "use_bidirectional_attention": "attention to later tokens",
    "add_cross_attention": "attention to an encoder",
    "reorder_and_upcast_attn": "reordered attention",
    "scale_attn_by_inverse_layer_idx": "attention scaled by the number of the layer",
    "n_group": "experts chosen in groups",
    "interleave_moe_layer_step": "experts in some layers by a step",
    "alibi": "ALiBi positions",
}
"""Field -> the feature that it switches on and this program lacks."""


LARGEST_CONTEXT = 2**20
"""Tokens. The tables of positions grow with it, and no model that can be read has a longer one."""


class Settings:
    """A `config.json`. Each `get` checks the type and remembers the field.

    Args:
        values: The parsed file, or a section of it.
        place: The file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values, self.place = values, place
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self.raw(name) is not None

    def raw(self, name: str) -> Any:
        """Return a field as it is; None where it is missing."""
        self._read.add(name)
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number; a field that is missing or null has the default.

        Raises:
            ForeignFileError: It is missing without a default, or not such a number.
        """
        value = self.raw(name)
        if value is None:
            value = default
        if type(value) is not int or not least <= value <= most:
            raise self.refused(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number; a field that is missing or null has the default.

        Raises:
            ForeignFileError: It is missing without a default, or not such a number.
        """
        value = self.raw(name)
        if value is None:
            value = default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.refused(name, value, "a finite number")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """Return a finite number above 0; a field that is missing or null has the default.

        Raises:
            ForeignFileError: It is not such a number.
        """
        value = self.number(name, default)
        if value <= 0:
            raise self.refused(name, value, "a number above 0")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false; a field that is missing or null has the default.

        Raises:
            ForeignFileError: It is something else.
        """
        value = self.raw(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.refused(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; a field that is missing or null has the default.

        Raises:
            ForeignFileError: It is missing without a default, or no text.
        """
        value = self.raw(name)
        if value is None:
            value = default
        if not isinstance(value, str):
            raise self.refused(name, value, "a text")
        return value

    def integers(self, name: str, count: int | None = None) -> list[int] | None:
        """Return a list of whole numbers; None where the field is missing or null.

        Raises:
            ForeignFileError: It is something else, or has another length than `count`.
        """
        value = self.raw(name)
        if value is None:
            return None
        fits = isinstance(value, list) and all(type(one) is int for one in value)
        if not fits or (count is not None and len(value) != count):
            raise self.refused(name, value, "a list of whole numbers" + ("" if count is None else f", {count} of them"))
        return list(value)

    def section(self, name: str) -> "Settings | None":
        """Return an object as settings of its own; None where the field is missing or null.

        Raises:
            ForeignFileError: It is no object.
        """
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refused(name, value, "an object")
        return Settings(value, f"{name} of {self.place}")

    def refused(self, name: str, value: Any, expected: str) -> ForeignFileError:
        """Make the error for a field of the wrong type or range."""
        shown = "nothing" if value is None else short(repr(value))
        return ForeignFileError(
            f"{self.place}: found {shown} as {name}, expected {expected}; download the model again, or correct the file"
        )

    def require(self, name: str, allowed: Any, feature: str) -> None:
        """Refuse a field whose value is not the one that this program computes.

        Raises:
            UnsupportedModelError: It has another value.
        """
        value = self.raw(name)
        if value is not None and value != allowed:
            raise missing_feature(self.place, name, value, feature)

    def require_no_missing_feature(self) -> None:
        """Refuse a field that switches on a feature which this program lacks.

        Raises:
            UnsupportedModelError: There is one.
        """
        for name, feature in MISSING_FEATURES.items():
            value = self.values.get(name)
            if name not in self._read and value:
                raise missing_feature(self.place, name, value, feature)

    def unknown(self) -> list[str]:
        """List the fields that nothing read and that may mean something."""
        known = self._read | HARMLESS | MISSING_FEATURES.keys()
        return sorted(name for name, value in self.values.items() if name not in known and value)


def missing_feature(place: str, name: str, value: Any, feature: str) -> UnsupportedModelError:
    """Make the error for a feature that this program lacks."""
    return UnsupportedModelError(
        f"{place} has {name} {short(repr(value))}: this program has no {feature}, so it would compute another model; "
        "choose a model without it (docs/guides/import.md lists the families that can be read)"
    )
