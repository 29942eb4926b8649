"""The metadata of a GGUF file by key, each value checked for its type."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ....contract.errors import UserError
from .header import Value

_T = TypeVar("_T")
Reader = Callable[[Value], _T | None]
"""Return the value as its type; None where it is of another."""


class Metadata:
    """The metadata of a file; `{}` in a key stands for the architecture, as in `{}.block_count`."""

    def __init__(self, values: Mapping[str, Value], path: Path) -> None:
        self.values, self.path = values, path
        self.architecture = self.text("general.architecture")

    def __contains__(self, key: str) -> bool:
        return self._name(key) in self.values

    def __getitem__(self, key: str) -> Value:
        return self.values[self._name(key)]

    def is_set(self, key: str) -> bool:
        """Return whether a key is there with a value other than 0 and false."""
        value = self.values.get(self._name(key), 0)
        return bool(value.any()) if isinstance(value, np.ndarray) else bool(value)

    def is_array(self, key: str) -> bool:
        """Return whether a key is there with several numbers."""
        value = self.values.get(self._name(key))
        return isinstance(value, np.ndarray) and value.size > 1

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        return self._get(key, default, "a text", lambda value: value if isinstance(value, str) else None)

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """Return an array of texts."""
        return self._get(key, default, "an array of texts", lambda value: value if isinstance(value, list) else None)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        return self._get(key, default, "true or false", lambda value: value if isinstance(value, bool) else None)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 0; an array with one value in all places counts as that value."""

        def read(value: Value) -> int | None:
            if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
                value = value[0].item()
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            return int(value) if is_integer and value >= 0 else None  # type: ignore[arg-type,operator]  # it is an int

        return self._get(key, default, "a whole number of at least 0", read)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """Return a whole number for each of `count` layers, from an array or one value for all."""

        def read(value: Value) -> tuple[int, ...] | None:
            if isinstance(value, np.ndarray):
                whole = value.dtype.kind in "iub" and value.size == count and bool(np.all(value.astype(np.int64) >= 0))
                return tuple(int(each) for each in value) if whole else None
            is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            return (int(value),) * count if is_integer else None  # type: ignore[arg-type]  # it is an int

        return self._get(key, None, f"a whole number, or {count} of them", read)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""

        def read(value: Value) -> float | None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if is_number and np.isfinite(value) else None  # type: ignore[arg-type]  # a number

        return self._get(key, default, "a finite number", read)

    def numbers(self, key: str, count: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """Return an array of `count` numbers."""

        def read(value: Value) -> "np.ndarray[tuple[int], np.dtype[np.float64]] | None":
            is_array = isinstance(value, np.ndarray) and value.size == count
            return np.asarray(value, np.float64) if is_array else None

        return self._get(key, None, f"an array of {count:,} numbers", read)

    def _name(self, key: str) -> str:
        return key.replace("{}", self.architecture) if "{}" in key else key

    def _get(self, key: str, default: _T | None, expected: str, read: Reader[_T]) -> _T:
        name = self._name(key)
        if name not in self.values:
            if default is not None:
                return default
            raise UserError(f"{self.path} has no metadata {name}, expected {expected}; convert the model again")
        value = read(self.values[name])
        if value is None:
            found = repr(self.values[name])
            raise UserError(
                f"{self.path}: the metadata {name} is {found[:60]}{'...' if len(found) > 60 else ''}, expected "
                f"{expected}; convert the model again"
            )
        return value
