"""Figures of a whole generation: the compute that it used and the time that it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..execution.usage.total import Total
from .request import Request, Token


@dataclass(frozen=True)
class Summary:
    """Means over the new tokens.

    Speed is that of decoding: the first token, which waits for the prompt, counts only where it is the only one.
    """

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in memory already."""
    new_tokens: int
    experts_per_token: float
    """Mean over the tokens and the layers that they ran."""
    heads_per_token: float
    """Mean over the tokens and the layers that they ran."""
    layers_per_token: float
    """Mean of the layers run."""
    executed_flops_share: float
    """Executed over dense FLOPs, of all new tokens together."""
    tokens_per_second: float
    p50: float
    """Median, in milliseconds per token."""
    p95: float
    """95th percentile, in milliseconds per token."""
    prompt_seconds: float
    """Seconds to the first token."""
    drafted: int
    """Tokens that were guessed ahead."""
    accepted: int
    """How many of them were right."""
    seed: int | None
    finish_reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the summary as `generate --json` writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "new_tokens": self.new_tokens,
            "experts_per_token": round(self.experts_per_token, 4),
            "heads_per_token": round(self.heads_per_token, 4),
            "layers_per_token": round(self.layers_per_token, 4),
            "executed_flops_share": round(self.executed_flops_share, 5),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "milliseconds_per_token": {"p50": round(self.p50, 4), "p95": round(self.p95, 4)},
            "prompt_seconds": round(self.prompt_seconds, 6),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "seed": self.seed,
            "finish_reason": self.finish_reason,
        }


def summarise(request: Request, tokens: Sequence[Token]) -> Summary:
    """Sum up the tokens so far; a request that has not ended was interrupted."""
    total = tokens[0].meter.total([token.routes for token in tokens]) if tokens else Total()
    seconds = np.array([token.seconds for token in (tokens[1:] or tokens)] or [float("nan")])
    count = len(tokens)
    return Summary(
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        new_tokens=count,
        experts_per_token=total.experts_per_token,
        heads_per_token=total.heads_per_token,
        layers_per_token=total.layers_per_token,
        executed_flops_share=total.share,
        tokens_per_second=float(1 / seconds.mean()) if count else 0.0,
        p50=float(np.median(seconds)) * 1000 if count else 0.0,
        p95=float(np.percentile(seconds, 95)) * 1000 if count else 0.0,
        prompt_seconds=tokens[0].seconds if tokens else 0.0,
        drafted=request.drafted,
        accepted=request.accepted,
        seed=request.seed,
        finish_reason=request.finish_reason or "interrupted",
    )


def generation_json(request: Request, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return a whole generation as `generate --json` writes it."""
    return {
        "text": "".join(token.text for token in tokens),
        "tokens": [token_json(token) for token in tokens],
        "usage": summarise(request, tokens).as_json(),
        "thresholds": request.thresholds.as_lists(),
    }


def token_json(token: Token) -> dict[str, Any]:
    """Return one token as `generate --json` writes it."""
    usage = token.usage
    return {
        "id": token.id,
        "text": token.text,
        "experts": [list(used) for used in usage.experts],
        "heads": [list(used) for used in usage.heads],
        "windows": list(usage.windows),
        "layers_run": list(usage.layers_run),
        "exit_layer": usage.exit_layer,
        "executed_flops": usage.executed_flops,
        "dense_flops": usage.dense_flops,
        "seconds": round(token.seconds, 7),
        **_logprobs_json(token),
    }


def _logprobs_json(token: Token) -> dict[str, Any]:
    if token.logprob is None:
        return {}
    top = [{"id": one, "logprob": round(value, 6)} for one, value in (token.top_logprobs or {}).items()]
    return {"logprob": round(token.logprob, 6), "top_logprobs": top}
