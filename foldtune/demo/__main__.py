"""``python -m foldtune.demo`` is ``foldtune demo``."""

from foldtune.demo.commands import app

app(prog_name="foldtune demo")
