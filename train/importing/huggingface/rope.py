"""Rotary positions in a `config.json`: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before."""

import math
from typing import Any

from ..errors import UnsupportedModelError, short
from .settings import Settings, missing_feature

Rope = dict[str, Any]
"""A section `attention.rope` of our config."""
COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})
READ = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
}
"""Kind of scaling -> its fields."""


def rope_of(settings: Settings, *, theta: float, context: int, share: float = 1.0) -> Rope:
    """Read the rotary positions of all layers.

    Args:
        settings: The config.json.
        theta: The default base of the family.
        context: `max_position_embeddings`.
        share: The default of the family for the share of a head that is rotated.
    """
    scaling = settings.section("rope_parameters") or settings.section("rope_scaling")
    theta, share = settings.number("rope_theta", theta), settings.number("partial_rotary_factor", share)
    original = settings.integer("original_max_position_embeddings", context)
    return _rope(scaling, theta=theta, share=share, original=original, context=context, place=settings.place)


def ropes_by_kind(settings: Settings, *, theta: float, local_theta: float, context: int) -> dict[str, Rope]:
    """Read the rotary positions of layers with and without a window, as Gemma 3 has them.

    Returns:
        `full_attention` and `sliding_attention` -> rotary positions.
    """
    by_kind = settings.section("rope_parameters")
    scaling = settings.section("rope_scaling")
    bases = {
        "full_attention": settings.number("rope_theta", theta),
        "sliding_attention": settings.number("rope_local_base_freq", local_theta),
    }
    sections = {kind: by_kind.section(kind) if by_kind else None for kind in bases}
    if sections["full_attention"] is None:
        sections["full_attention"] = scaling  # before transformers 5 it scaled the layers without a window only
    return {
        kind: _rope(sections[kind], theta=base, share=1.0, original=context, context=context, place=settings.place)
        for kind, base in bases.items()
    }


def _rope(section: Settings | None, *, theta: float, share: float, original: int, context: int, place: str) -> Rope:
    if section is None:
        return {"theta": theta, "share": share}
    kind = section.text("rope_type", section.text("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in READ:
        raise missing_feature(place, "rope_type", kind, f"scaling of rotary positions of the kind {kind}")
    theta = section.number("rope_theta", theta)
    rope: Rope = {"theta": theta, "share": section.number("partial_rotary_factor", share)}
    for name in section.values:
        if name not in COMMON | READ[kind] and section.values[name] is not None:
            raise UnsupportedModelError(
                f"{section.place} has {short(name)}, which this program does not know for rotary positions of the kind "
                f"{kind} (known: {', '.join(sorted(COMMON | READ[kind]))}); remove it, if the model does not need it"
            )
    if kind == "default":
        return rope
    own = section.integer("original_max_position_embeddings", original, least=2)
    scaling: dict[str, Any] = {"kind": kind}
    if kind != "longrope":
        scaling["factor"] = section.number("factor")
    if kind == "linear":
        return {**rope, "scaling": scaling}
    scaling["original_context"] = own
    if kind == "llama3":
        scaling["low_frequency_factor"] = section.number("low_freq_factor")
        scaling["high_frequency_factor"] = section.number("high_freq_factor")
    elif kind == "yarn":
        section.require("truncate", True, "scaling of rotary positions with fractional bounds")
        scaling["beta_fast"] = section.number("beta_fast", 32.0)
        scaling["beta_slow"] = section.number("beta_slow", 1.0)
        scaling["attention_factor"] = _yarn_attention(section, scaling["factor"])
    else:
        factor = section.positive("factor", context / own)
        default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(own))
        scaling["attention_factor"] = section.number("attention_factor", default)
        scaling["short_factors"] = _numbers(section, "short_factor")
        scaling["long_factors"] = _numbers(section, "long_factor")
    return {**rope, "scaling": scaling}


def _yarn_attention(section: Settings, factor: float) -> float:
    """Return the factor of attention of YaRN, from `mscale` and `mscale_all_dim` where the file has them."""

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    default = of(1.0)
    if section.number("mscale", 0) and section.number("mscale_all_dim", 0):  # 0 is none, as in transformers
        default = of(section.positive("mscale", 1)) / of(section.positive("mscale_all_dim", 1))
    return section.number("attention_factor", default)


def _numbers(section: Settings, name: str) -> list[float]:
    value = section.raw(name)
    if not isinstance(value, list) or any(
        type(one) not in (int, float) or not math.isfinite(one) or one <= 0 for one in value
    ):
        raise section.refused(name, value, "a list of numbers above 0")
    return [float(one) for one in value]
