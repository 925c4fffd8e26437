"""Which figures in the docs are older than the code that they rest on.

A section with figures has a line of their source: ``Measured: `COMMAND` · machine · date · at COMMIT · PATHS``, where
the paths are the code that decides them. ``make figures`` lists those of which a path has changed since that commit;
the last line of output is one JSON object.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ("README.md", "docs/performance.md", "docs/chaos.md", "docs/operations.md")
_SOURCE = re.compile(
    r"Measured: (?P<command>.+?) · (?P<machine>[^·]+) · (?P<day>\d{4}-\d\d-\d\d)"
    r" · at (?P<commit>[0-9a-f]{7,40}) · (?P<paths>`.+`)"
)


@dataclass(frozen=True)
class Source:
    """Where the figures after line ``line`` of ``page`` come from."""

    page: str
    line: int
    commit: str
    day: date
    paths: tuple[str, ...]

    @property
    def changes(self) -> int:
        """Commits to the paths since the figures were measured; merges count once."""
        command = ["git", "rev-list", "--count", f"{self.commit}..HEAD", "--", *self.paths]
        return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def sources(page: str) -> Iterator[Source]:
    """The sources that a page names.

    Raises:
        ValueError: a line of a source is malformed, with its place.
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("Measured: "):
            continue
        # A source may take several lines, up to the next empty one.
        rest = lines[number:]
        text = " ".join([line, *rest[: next((index for index, other in enumerate(rest) if not other), len(rest))]])
        if (found := _SOURCE.fullmatch(text)) is None:
            raise ValueError(f"{page}:{number}: expected COMMAND · machine · date · at COMMIT · PATHS")
        paths = tuple(re.findall(r"`([^`]+)`", found["paths"]))
        yield Source(page, number, found["commit"], date.fromisoformat(found["day"]), paths)


def main() -> None:
    """List the sources of which code has changed."""
    stale = {f"{source.page}:{source.line}": source.changes for page in DOCS for source in sources(page)}
    for place, changes in stale.items():
        if changes:
            sys.stdout.write(f"{place}: {changes} commits to its code since\n")
    sys.stdout.write(json.dumps({"figures": len(stale), "stale": sum(map(bool, stale.values()))}) + "\n")


if __name__ == "__main__":
    main()
