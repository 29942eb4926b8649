"""`response_format` as a grammar: what a compiler refuses reaches the client as an error of its own kind."""

from types import SimpleNamespace
from typing import Any

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime.structured.compiler import BusyError
from adaptive_lm.serve.errors import BadRequestError, ServeError, UnavailableError
from adaptive_lm.serve.protocols import grammars
from adaptive_lm.serve.protocols.openai.format import RegexFormat


@pytest.mark.parametrize(
    ("error", "kind", "headers"),
    [
        (UserError("found a rule that cannot be used"), BadRequestError, {}),
        (BusyError("found 8 rules that wait"), UnavailableError, {"Retry-After": "3"}),
    ],
    ids=["invalid", "busy"],
)
def test_an_error_of_the_compiler_is_one_of_the_request(
    monkeypatch: pytest.MonkeyPatch, error: UserError, kind: type[ServeError], headers: dict[str, str]
) -> None:
    class Refusing:
        def __init__(self, tokenizer: Any) -> None:
            pass

        def compile(self, constraint: Any) -> Any:
            raise error

    monkeypatch.setattr(grammars, "Compiler", Refusing)
    model: Any = SimpleNamespace(name="demo", tokenizer=None)
    with pytest.raises(kind) as raised:
        grammars.Grammars().compile(RegexFormat(type="regex", regex="a"), model)
    assert (raised.value.message, raised.value.param, raised.value.headers) == (str(error), "response_format", headers)
