"""``python -m foldtune``: the command line, with this interpreter."""

from foldtune.cli import main

main()
