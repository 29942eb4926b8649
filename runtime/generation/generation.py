"""One text as it is generated: an iterator over its tokens."""

from collections.abc import Callable, Iterator, Sequence

from ..dial.thresholds import Thresholds
from .loop import Loop
from .request import Request, Token
from .sampling.params import Params


class Generation(Iterator[Token]):
    """The tokens of one generation, each computed when it is requested.

    Args:
        begin: Ends the generation before, and returns a loop with these requests; see `Engine.begin`.
        request: What to generate.
    """

    def __init__(self, begin: Callable[[Sequence[Request]], Loop], request: Request) -> None:
        self.request = request
        """Its settings and its state."""
        self._begin = begin
        self._loop: Loop | None = None
        self._tokens: list[Token] = []  # computed and not returned yet, the next one last

    @property
    def params(self) -> Params:
        """Settings of the generation."""
        return self.request.params

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds in use."""
        return self.request.thresholds

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.request.prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that it generates."""
        return self.request.max_new_tokens

    @property
    def finish_reason(self) -> str | None:
        """None while it runs, then "eos", "stop", "length", "cancelled" or "error"."""
        return None if self._tokens else self.request.finish_reason

    @property
    def seed(self) -> int | None:
        """The seed in use, drawn or given; a drawn one is None until the first token."""
        return self.request.seed

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Token:
        request = self.request
        if self._loop is None and request.status == "waiting":
            self._loop = self._begin([request])
        while not self._tokens:
            if request.error is not None:
                raise request.error
            if request.status == "ended":
                if request.finish_reason == "cancelled" and self._loop is not None:
                    raise RuntimeError("another generation of this engine began; an engine runs one at a time")
                raise StopIteration
            assert self._loop is not None
            self._tokens = [one.token for one in self._loop.step() if one.token is not None][::-1]
        return self._tokens.pop()

    def close(self) -> None:
        """End it, and free its slot."""
        if self._loop is not None:
            self._loop.cancel(self.request)
        elif self.request.status == "waiting":
            self.request.end("cancelled")
        self._loop, self._tokens = None, []
