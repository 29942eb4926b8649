"""Settings of a beam search."""

from dataclasses import MISSING, dataclass, fields

from ....contract.errors import WrongUsageError
from ..sampling.params import Params
from ..sampling.sampler import Sampling, check_number, check_whole

MAX_LENGTH_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """Settings of a beam search."""

    beams: int = 4
    """Most texts at a time, at least 1; 1 gives the text of temperature 0."""
    beam_margin: float | None = None
    """Drop a text whose log-probability is more than this below the best one's, in nats, 0 or more.

    The search is then wide only where the model is unsure. None drops none. Source: Freitag & Al-Onaizan 2017 (arXiv
    1702.01806), absolute threshold pruning.
    """
    length_penalty: float = 0.6
    """A finished text is scored by its log-probability over ((5 + tokens) / 6) to the power of this, 0 to 10.

    0 favours short texts. Source: Wu et al. 2016 (arXiv 1609.08144), equation 14.
    """

    def __post_init__(self) -> None:
        check_whole("beams", self.beams, 1, None, "1 takes the most probable token each time")
        if self.beam_margin is not None:
            check_number("beam_margin", self.beam_margin, 0, float("inf"), "leave it out to drop no text")
        check_number("length_penalty", self.length_penalty, 0, MAX_LENGTH_PENALTY, "0 does not look at the length")


def check_beam_params(params: Params) -> None:
    """Refuse settings that a beam search would ignore.

    Raises:
        WrongUsageError: The name of the first one, and what it has.
    """
    for field in fields(Sampling):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(params, field.name)
        if value != default and not (field.name == "temperature" and value == 0):
            raise WrongUsageError(
                f"found {field.name} {value} with a beam search, which draws nothing and ranks by the probabilities of "
                "the model alone; leave it out, or use best-of"
            )
    if params.speculate not in (None, "off"):
        raise WrongUsageError(
            f"found speculate {params.speculate} with a beam search, which computes several texts and guesses nothing; "
            "leave it out"
        )
