"""``python -m demo`` is ``foldtune demo``."""

from demo.commands import app

app(prog_name="foldtune demo")
