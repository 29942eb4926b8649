"""The progress display of a run."""

import io

import pytest
from rich.console import Console

from adaptive_lm.train.system.progress import Progress, duration, line, rate

RECORD = {
    "step": 120, "loss": 2.31, "val_loss": 2.4, "tokens_per_second": 12_345.0, "experts_per_token": 1.579,
    "layers_per_token": 4.0, "grad_norm": 0.81,
}  # fmt: skip


def test_the_line_has_all_figures() -> None:
    assert line(RECORD, "/1000", 83.0) == (
        "step 120/1000  loss 2.310  val 2.400  12.3k tokens/s  experts 1.58  layers 4.00  grad 0.81  1:23 left"
    )


def test_what_was_not_measured_is_left_out() -> None:
    assert line({"step": 3, "loss": None, "grad_norm": float("nan")}, "", None) == "step 3  grad nan"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (4000, "1:06:40"), (-3, "0:00")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_rates() -> None:
    assert (rate(999.0), rate(1000.0)) == ("999", "1.0k")


def test_without_a_terminal_plain_lines_come_every_few_seconds() -> None:
    seen = io.StringIO()
    with Progress(Console(file=seen, width=300), plain_seconds=1000) as display:
        display.show({"step": 1}, "/9", None)
        display.show({"step": 2}, "/9", None)
        display.show({"step": 9}, "/9", None, force=True)
        display.log("saved [brackets] as they are")
    assert seen.getvalue() == "step 1/9\nstep 9/9\nsaved [brackets] as they are\n"


def test_a_long_preparation_says_how_far_it_is_and_a_short_one_nothing() -> None:
    for plain_seconds, said in ((0.0, "tokenising: 25%\n"), (1000.0, "")):
        seen = io.StringIO()
        Progress(Console(file=seen, width=300), plain_seconds).work("tokenising", 5, 20)
        assert seen.getvalue() == said


def test_a_terminal_has_one_live_line() -> None:
    seen = io.StringIO()
    console = Console(file=seen, width=120, force_terminal=True, color_system=None)
    with Progress(console) as display:
        for step in range(3):
            display.show({**RECORD, "step": step}, "/9", None, force=True)
    assert "step 2/9" in seen.getvalue()
    assert seen.getvalue().count("\n") == 1  # the line is ended once, when the run is
    assert "\x1b[?25h" in seen.getvalue()  # the cursor is back
