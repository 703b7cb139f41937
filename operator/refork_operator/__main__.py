"""``python -m refork_operator``."""

from refork_operator.cli import main

main()
