"""The check of an export over fewer tokens: an eighth of the time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adaptive_lm.export import exporter
from adaptive_lm.export.proof import check, judge


@contextmanager
def quick_check() -> Iterator[None]:
    """Make the check use fewer tokens."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TOKENS", "WINDOW"):
            patch.setattr(judge, name, 128)
        for name in ("DECODED", "GREEDY"):
            patch.setattr(check, name, 8)
        patch.setattr(exporter, "PROFILED", 3)
        yield
