"""Fields that chat and completions share: sampling, and what is answered."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from ....runtime.generation.sampling.sampler import biases_of
from ....runtime.generation.text.stop import checked_stops, stops_of
from ..body import Body, NoTools
from ..ours.compute import ComputeFields
from .format import ResponseFormat

MAX_CHOICES = 16
MAX_BIASES = 1024


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    """Whether a last chunk without choices holds the usage."""


class SamplingFields(ComputeFields):
    """Fields about sampling; those that are left out or null take the defaults of `adaptive generate`."""

    model: str | None = None
    """A name from `GET /v1/models`; the first of them if left out."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Texts to generate for each prompt."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """With `n`, the texts take this seed and those after it."""
    stop: str | list[str] | None = None
    """The text ends before the first of these."""
    logit_bias: dict[str, float] | None = None
    """Token id -> what is added to its logit, -100 to 100."""
    response_format: ResponseFormat | None = None
    """What the text must match."""
    functions: NoTools = None
    """Refused: the older form of `tools`."""

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        checked_stops(stops_of(value))
        return value

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and len(value) > MAX_BIASES:
            raise ValueError(f"found {len(value)} entries in logit_bias, expected at most {MAX_BIASES}; give fewer")
        for key, bias in (value or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 9):
                raise ValueError(f'found the key {key[:20]!r} in logit_bias, expected a token id such as "42"')
            if not -100 <= bias <= 100:
                raise ValueError(f"found {bias:g} in logit_bias, expected a number from -100 to 100")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return stops_of(self.stop)

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of `Params` that are set."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
        )
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            fields["logit_bias"] = biases_of(self.logit_bias)
        return fields

    def seed_of(self, choice: int) -> int | None:
        """Return the seed of the text with this number."""
        if self.seed is None or choice == 0:
            return self.seed
        return (self.seed + choice) % 2**64
