"""Run the command line by ``python -m nowcast.cli``."""

from nowcast.cli import main

main()
