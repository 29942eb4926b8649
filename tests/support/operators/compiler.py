"""Whether torch.compile can make code for the CPU here, for the tests that let it."""

import pytest

from adaptive_lm.train.loop.setup.compilation import has_compiler

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
