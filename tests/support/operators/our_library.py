"""Whether our compiled operators can be used here, for the tests that run them."""

import pytest

from adaptive_lm.runtime.ops.library import NoLibraryError, load_library


def _missing() -> str | None:
    try:
        load_library()
    except NoLibraryError as reason:
        return str(reason)
    return None


MISSING = _missing()
"""Why they cannot; None where they can."""
needs_library = pytest.mark.skipif(MISSING is not None, reason=f"our operators cannot be used here: {MISSING}")
