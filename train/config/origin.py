"""The section `origin` of a run's config: the weights that training goes on from."""

from pydantic import Field

from ..system.section import Section


class OriginConfig(Section):
    """The run that training goes on from, with its model and its tokenizer; `adaptive train --from` sets it."""

    run: str = Field(min_length=1)
    """Name of a run in `runs/`, or the path of its folder."""
    checkpoint: str = Field("last", pattern=r"^(best|last|\d+)$")
    """Checkpoint of that run: `best`, `last`, or its step. The program fills in the step."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the weights; other weights are refused. The program fills it in."""
