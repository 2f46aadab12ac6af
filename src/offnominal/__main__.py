"""``python -m offnominal`` is the command ``offnominal``."""

from offnominal.cli import main

main()
