"""``python -m infra.local`` is ``foldtune local``."""

from infra.local.commands import app

app(prog_name="foldtune local")
