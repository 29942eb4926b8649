"""A long call into native code: its result and its errors come through, and a signal does not wait for it."""

import os
import signal
import threading
import time

import pytest

from adaptive_lm.train.system.interruptible import run_interruptibly
from adaptive_lm.train.system.signals import Stopped, StopSignals


def test_the_result_and_the_error_of_a_call_come_through():
    assert run_interruptibly(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_at_once(number):
    release = threading.Event()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    started = time.monotonic()
    with pytest.raises(Stopped), StopSignals():
        run_interruptibly(lambda: release.wait(30))
    assert time.monotonic() - started < 5
    release.set()
