"""Many small cases in one test: an item of pytest costs milliseconds in every worker, more than such a case itself."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def each(names: str | Sequence[str], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each case in one item; written as `pytest.mark.parametrize`, and nested where several are stacked.

    The message of a failure ends with the case. The cases share the fixtures of the test, so use
    `pytest.mark.parametrize` where a case changes one, or takes a tenth of a second.
    """
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [(case,) if len(keys) == 1 else tuple(case) for case in cases]
    assert rows, f"no case of {', '.join(keys)}: the test would pass without running"

    def in_one_item(test: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(test).parameters

        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
            for row in rows:
                case = dict(zip(keys, row, strict=True))
                try:
                    test(*args, **fixtures, **case)
                except BaseException as error:
                    error.add_note("case: " + ", ".join(f"{key} = {label(value)}" for key, value in case.items()))
                    raise

        rest = [parameter for name, parameter in parameters.items() if name not in keys]
        assert len(rest) == len(parameters) - len(keys), f"{test.__name__} has not the parameters {', '.join(keys)}"
        run.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
        return run

    return in_one_item


def label(value: Any) -> str:
    """Return a line that names a value: a function or an object by its name, anything else by the start of its repr."""
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)[:100]
