"""``python -m nowcast.cli``."""

from nowcast.cli import main

main()
