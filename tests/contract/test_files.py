"""Paths and files: what a user typed, and what a library can open."""

import os
from pathlib import Path

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.files import require_utf8_path


def test_a_path_that_is_not_utf8_is_named_with_a_cure() -> None:
    require_utf8_path(Path("café/model.onnx"))
    with pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8.* Rename the folder"):
        require_utf8_path(Path(os.fsdecode(b"caf\xe9/model.onnx")))
