"""A search as `generate` reports it: the best text, its cost with that of the dropped texts, and the others."""

from dataclasses import replace
from typing import Any

from ..summary import Summary, generation_json, summarise
from .hypothesis import Found, Hypothesis


def summarise_found(found: Found) -> Summary:
    """Sum up the best text; its FLOPs are those of the whole search."""
    summary = summarise(found.request, found.best.tokens)
    return replace(summary, executed_flops_share=summary.executed_flops_share * found.flops_ratio)


def found_json(found: Found) -> dict[str, Any]:
    """Return a search as `generate --json` writes it."""
    best, *others = found.hypotheses
    effort = found.effort
    return generation_json(found.request, best.tokens) | {
        "usage": summarise_found(found).as_json(),
        "score": round(best.score, 6),
        "logprob": round(best.logprob, 6),
        "alternatives": [_as_json(one) for one in others],
        "search": {
            "steps": effort.steps,
            "computed_tokens": effort.tokens,
            "executed_flops": effort.executed_flops,
            "flops_ratio": round(found.flops_ratio, 4),
            "seconds": round(effort.seconds, 6),
        },
    }


def found_line(found: Found) -> str:
    """Write one line about the score and the cost of a search."""
    best, effort = found.best, found.effort
    return (
        f"best of {len(found.hypotheses)} texts · score {best.score:.3f} · log-probability {best.logprob:.2f} · "
        f"{effort.tokens} tokens computed, {found.flops_ratio:.2f} times the FLOPs of this text alone"
    )


def _as_json(one: Hypothesis) -> dict[str, Any]:
    return {
        "text": one.text,
        "score": round(one.score, 6),
        "logprob": round(one.logprob, 6),
        "new_tokens": len(one.tokens),
        "finish_reason": one.finish_reason,
        "seed": one.seed,
    }
