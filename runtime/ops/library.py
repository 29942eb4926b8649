"""Find, load and check the compiled library of our operators.

It stands beside this file, where the package's own build put it; its path never comes from a model. A library that does
not load, is of another version, or gives a wrong answer to the probe is not used: the portable graph runs instead.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .probe import VERSION, probe_answer, probe_inputs, probe_model

SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
PATH = Path(__file__).with_name(f"adaptive_ops.{SUFFIX}")
OLDEST_ONNXRUNTIME = (1, 31)
"""The oldest ONNX Runtime whose C interface was tested."""
PATH_VARIABLE = "ADAPTIVE_OPS_LIBRARY"
"""Environment variable with the path of another build, for tests of it."""


class NoLibraryError(Exception):
    """The reason why our operators cannot be used here, in one line."""


class Library:
    """The loaded library."""

    def __init__(self, handle: Any, path: Path) -> None:
        handle.adaptive_ops_kernel.restype = ctypes.c_char_p
        handle.adaptive_ops_bytes_read.restype = ctypes.c_uint64
        self._handle, self._path = handle, path

    @property
    def kernel(self) -> str:
        """The instruction set in use: `avx512vnni`, `avx2`, `neon` or `plain`."""
        return str(self._handle.adaptive_ops_kernel().decode())

    def bytes_read(self) -> int:
        """Return how many bytes of packed weights products have read since the library was loaded."""
        return int(self._handle.adaptive_ops_bytes_read())

    def register(self, options: Any) -> None:
        """Add the operators to the SessionOptions of ONNX Runtime."""
        options.register_custom_ops_library(str(self._path))


@functools.cache
def load_library() -> Library:
    """Load the library once, and check it.

    Raises:
        NoLibraryError: It cannot be used here.
    """
    path = Path(os.environ.get(PATH_VARIABLE, PATH))
    if not path.is_file():
        raise NoLibraryError("they were not built when adaptive was installed, since there was no C++ compiler")
    try:
        handle = ctypes.CDLL(str(path))
        version = handle.adaptive_ops_version()
    except (OSError, AttributeError) as error:
        raise NoLibraryError(f"the library does not load: {error}") from error
    if version != VERSION:
        raise NoLibraryError(f"the library is of version {version}, expected {VERSION}; install adaptive again")
    library = Library(handle, path)
    _check(library)
    return library


def _check(library: Library) -> None:
    """Compare the answer to the probe with numpy's."""
    import onnxruntime

    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if installed < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise NoLibraryError(f"onnxruntime is {onnxruntime.__version__}, expected {oldest} or later")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        library.register(options)
        session = onnxruntime.InferenceSession(probe_model(), options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, probe_inputs())
    except Exception as error:  # onnxruntime raises many classes without a common base
        raise NoLibraryError(f"onnxruntime {onnxruntime.__version__} refuses the library: {error}") from error
    if not np.allclose(logits, probe_answer(), rtol=1e-5, atol=1e-5):
        raise NoLibraryError("the library gives a wrong answer to a known product; install adaptive again")
