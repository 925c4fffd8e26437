"""``foldtune config``."""

from collections.abc import Iterator
from typing import Any

import typer

from foldtune.commands.output import AsJson, print_json, print_table
from foldtune.settings import ENV_PREFIX, load_settings

app = typer.Typer(add_completion=False)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Show the effective settings, from the environment, foldtune.toml and the defaults; secrets are masked.

    Each is shown as its variable: FOLDTUNE_KAFKA__PARTITIONS is kafka.partitions in foldtune.toml.
    """
    content = load_settings().model_dump(mode="json")
    if as_json:
        print_json(content)
        return
    print_table(("setting", "value"), list(_rows(content)))


def _rows(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for section, value in content.items():
        fields = value.items() if isinstance(value, dict) else [("", value)]
        for field, setting in fields:
            path = [section, field] if field else [section]
            text = "" if setting is None else str(setting)
            yield f"{ENV_PREFIX}{'__'.join(path).upper()}", text
