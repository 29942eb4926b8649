"""Progress of a long measurement, where stderr is not a terminal."""

import pytest

from adaptive_lm.runtime.terminal.progress import PLAIN_SECONDS, Progress


def test_plain_lines_come_at_most_every_ten_seconds_and_logged_lines_always(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress(clock=lambda: now) as progress:
        progress.show("at once")
        now = PLAIN_SECONDS - 0.1
        progress.show("too early")
        progress.log("a line that stays")
        now = PLAIN_SECONDS
        progress.show("due")
        now += 1
        progress.show("too early again")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["a line that stays", "due"]
    assert printed.out == ""


def test_a_line_that_looks_like_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.log("[red]text[/red]")
    assert capsys.readouterr().err == "[red]text[/red]\n"
