"""The figures of an evaluation, as `eval --json` writes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from ..dial import Dial
from ..execution.usage.total import Total
from ..measuring.quality.divergence import Divergence, Point
from ..measuring.quality.perplexity import Score
from ..measuring.timing import Timed
from .params import name_of, settings_of

MOST_NATS = 700
"""Loss from which the perplexity is more than a float64 holds."""


class Scored(NamedTuple):
    """The measurements of a point on one text."""

    score: Score
    divergence: Divergence | None
    """Its distance from the reference, if there is one."""


def score_json(parts: Sequence[Scored]) -> dict[str, Any]:
    """Return the figures of one or several texts together; each token counts the same."""
    if not parts:
        return {}
    tokens, nats = sum(one.score.tokens for one in parts), sum(one.score.nats for one in parts)
    loss = nats / tokens
    result = {
        "loss": round(loss, 6),
        "perplexity": round(math.exp(loss), 6) if loss < MOST_NATS else None,
        "bits_per_byte": round(nats / math.log(2) / sum(one.score.bytes for one in parts), 6),
        "tokens": tokens,
    }
    divergences = [one.divergence for one in parts if one.divergence is not None]
    if divergences:
        result["kl"] = round(sum(one.nats for one in divergences) / tokens, 6)
        result["agreement"] = round(sum(one.same for one in divergences) / tokens, 6)
    return result


def point_json(dial: Dial, point: Point, texts: Mapping[str, Scored], timed: Timed | None) -> dict[str, Any]:
    """Return one point of the dial: its settings, its usage and its figures, of all texts and of each."""
    if texts:
        usage = usage_json(sum((one.score.tally for one in texts.values()), Total()))
    else:
        usage = usage_json(timed.tally) if timed else {}
    return {
        "name": name_of(dial),
        "dial": settings_of(dial),
        "thresholds": point.thresholds.as_lists(),
        **usage,
        **score_json(list(texts.values())),
        **({"data": [{"file": name, **score_json([one])} for name, one in texts.items()]} if texts else {}),
        "milliseconds_per_token": None
        if timed is None
        else {name: round(value, 5) for name, value in asdict(timed.milliseconds).items()},
    }


def usage_json(tally: Total) -> dict[str, Any]:
    """Return what the tokens of a tally used."""
    return {
        "executed_share": round(tally.share, 5),
        **tally.means(),
    }
