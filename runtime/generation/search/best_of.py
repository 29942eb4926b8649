"""Best of n: texts drawn with different seeds, ranked by a score."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ....contract.errors import WrongUsageError
from ..loop import Loop
from ..request import Request, Token
from ..sampling.params import Params
from ..sampling.sampler import MAX_SEED, check_whole
from .hypothesis import Effort, Found, Hypothesis

Scorer = Callable[[Hypothesis], float]
"""Returns the score of a text, higher is better; its own `score` is the mean log-probability."""


def mean_logprob(text: Hypothesis) -> float:
    """Return the mean log-probability of the tokens."""
    return text.score


def seeded(params: Params, n: int) -> list[Params]:
    """Return the settings of `n` texts, with the seeds s, s + 1, ...; s is that of `params`, or drawn."""
    check_best_of(params, n)
    first = int(np.random.SeedSequence().generate_state(1)[0]) if params.seed is None else params.seed
    logprobs = params.logprobs or 0
    return [replace(params, seed=(first + index) % (MAX_SEED + 1), logprobs=logprobs) for index in range(n)]


def check_best_of(params: Params, n: int) -> None:
    """Refuse a number of texts that cannot be drawn.

    Raises:
        WrongUsageError: There are no texts, or all would be the same.
    """
    check_whole("best_of", n, 1, None, "1 draws one text")
    if params.temperature == 0 and n > 1:
        raise WrongUsageError(
            f"found temperature 0 with best-of {n}, which gives {n} times the same text; give a temperature above 0"
        )


def best_of(loop: Loop, requests: Sequence[Request], scorer: Scorer) -> Found:
    """Compute the texts of all requests and rank them.

    The first one reads the prompt; the others, which have the same one, begin when it is in memory.

    Raises:
        ValueError: The scorer returned no number.
    """
    begin = time.perf_counter()
    tokens: dict[Request, list[Token]] = {one: [] for one in requests}
    effort = Effort()
    first, *others = requests
    loop.submit(first)
    try:
        while loop.busy or others:
            if others and (first.new_tokens or first.status == "ended"):
                for one in others:
                    loop.submit(one)
                others = []
            for event in loop.step():
                if event.request.error is not None:
                    raise event.request.error
                if event.token is not None:
                    tokens[event.request].append(event.token)
                    effort.add([event.token.routes], event.token.meter)
            effort.steps += 1
    finally:
        for one in requests:
            if one.status != "ended":
                loop.cancel(one)
    effort.seconds = time.perf_counter() - begin
    ranked = []
    for request, text in tokens.items():
        logprob = sum(token.logprob or 0.0 for token in text)
        found = Hypothesis(text, logprob, logprob / len(text), request.finish_reason, request.seed)
        score = float(scorer(found))
        if math.isnan(score):
            raise ValueError(f"found the score nan of the text with seed {request.seed}, expected a number")
        ranked.append((replace(found, score=score), request))
    ranked.sort(key=lambda one: -one[0].score)  # stable: the first of equal ones
    return Found(ranked[0][1], [one for one, _ in ranked], effort)
