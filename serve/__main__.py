"""Run `adaptive` as `python -m adaptive_lm.serve`."""

from .cli import main

main()
