"""``python -m foldtune``: the command line, by the interpreter that runs it."""

from foldtune.cli import main

main()
