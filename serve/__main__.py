"""`python -m adaptive_lm.serve` is `adaptive`."""

from .cli import main

main()
