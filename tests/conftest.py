"""What all tests share: one cache of compiled code, and an order in which the files that take long come first."""

import gc
import getpass
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

# Code that torch.compile has made for one test serves the next, also in the processes that tests start, and in the next
# run: torch looks it up by what was compiled. One thread, because each other one is a process that imports torch.
COMPILED = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the most slow tests first; `--dist loadfile` hands files out in this order.

    So that no worker begins a long file when the others have nothing left.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # stable: the tests of a file stay together and in their order


def pytest_collection_finish() -> None:
    """Leave the modules and tests that are loaded now out of each later garbage collection.

    An export collects garbage three times; with torch and all tests loaded that took a third of a second each.
    """
    gc.collect()
    gc.freeze()
