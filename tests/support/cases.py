"""Many small cases in one test: an item of pytest costs milliseconds in every worker, more than such a case itself."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


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


def each_covered(
    names: str | Sequence[str], cases: Iterable[Any], cover: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each case, in two items: those of `cover`, and all others, which are marked `slow`.

    A case is of the cover if it, or the first of its values, is in there.
    """
    cases, cover = list(cases), list(cover)
    first = [case for case in cases if (case if isinstance(case, str) else case[0]) in cover]
    others = [case for case in cases if case not in first]

    def in_two_items(test: Callable[..., None]) -> Callable[..., None]:
        groups = {"cover": each(names, first)(test), "others": each(names, others)(test)}
        parameters = list(inspect.signature(groups["cover"]).parameters.values())

        @functools.wraps(test)
        def run(group: str, **fixtures: Any) -> None:
            groups[group](**fixtures)

        group = inspect.Parameter("group", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([group, *parameters])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("group", ["cover", pytest.param("others", marks=pytest.mark.slow)])(run)

    return in_two_items


def slowly_all(names: Iterable[str], forms: Sequence[Any]) -> list[Any]:
    """Pair every name with one form in turn, the first name with each; the rest of the product is marked `slow`."""
    names = list(names)
    return [
        (name, form)
        if number == 0 or place == number % len(forms)
        else pytest.param(name, form, marks=pytest.mark.slow)
        for number, name in enumerate(names)
        for place, form in enumerate(forms)
    ]
