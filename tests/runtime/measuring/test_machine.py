"""The machine on which a figure was measured."""

import subprocess
import sys

import numpy as np

from adaptive_lm.runtime.measuring.machine import peak_memory

MIB = 2**20


def test_the_peak_rises_with_what_the_process_holds() -> None:
    before = peak_memory()
    np.ones(before + 64 * MIB, np.int8)
    assert peak_memory() >= before + 64 * MIB


def test_the_peak_of_a_small_process_is_its_own_whoever_started_it() -> None:
    """Linux hands the `ru_maxrss` of a process on to the program that it starts."""
    big = np.ones(400 * MIB, np.int8)
    code = "from adaptive_lm.runtime.measuring.machine import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert MIB < int(child.stdout) < big.nbytes / 2
