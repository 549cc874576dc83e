"""`python -m rayad.cli`."""

from rayad.cli import main

main()
