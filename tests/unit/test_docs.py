"""The files, modules and links that the README and the pages of ``docs/`` name exist.

``docs/decisions.md`` is left out: it is a log, and names files as they were.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from benchmarks.figures import DOCS, sources
from foldtune.bounds import Bounds
from foldtune.events import MAX_ENVELOPE_LOGS
from foldtune.settings import SetLimits

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "decisions.md"]
FOLDERS = frozenset(
    "api benchmarks demo docs foldtune infra launchers server streams tests trainers".split()  # noqa: SIM905
)
PATH = re.compile(r"[\w-][\w.-]*(/[\w.-]+)*/?")
# A dotted name that is a file: `foldtune.toml`.
FILE_SUFFIXES = (".toml", ".json", ".md", ".yml", ".yaml")


def code(page: Path) -> Iterator[str]:
    """The code of a page: fenced blocks, and the spans in its prose."""
    text = page.read_text()
    yield from re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def files() -> frozenset[str]:
    """Files and folders of the repository, folders with a slash at their end."""
    paths = [path for folder in FOLDERS for path in [ROOT / folder, *(ROOT / folder).rglob("*")]]
    return frozenset(f"{path.relative_to(ROOT).as_posix()}{'/' if path.is_dir() else ''}" for path in paths)


def exists(path: str) -> bool:
    """Whether a path from the root exists, or a file or folder whose path ends so."""
    return (ROOT / path).exists() or any(f"/{known}".endswith(f"/{path}") for known in files())


def named_paths(page: Path) -> set[str]:
    """What looks like a path of this repository: begins with one of its folders, or is a Python file."""
    tokens = {token for text in code(page) for token in text.split() if PATH.fullmatch(token)}
    return {token for token in tokens if ("/" in token and token.partition("/")[0] in FOLDERS) or token.endswith(".py")}


def named_modules(page: Path) -> set[str]:
    """Dotted names that begin with one of the repository's packages, and what ``python -m`` starts."""
    found = {name for text in code(page) for name in re.findall(r"-m ([a-z_]\w*(?:\.\w+)*)", text)}
    spans = {token for text in code(page) for token in text.split() if re.fullmatch(r"\w+(\.\w+)+(\(\))?", token)}
    names = found | {span.removesuffix("()") for span in spans if not span.endswith(FILE_SUFFIXES)}
    return {name for name in names if name.partition(".")[0] in FOLDERS}


def is_module_or_member(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module defines."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.is_dir():
            return length == len(parts)
        if (module := path.with_suffix(".py")).exists():
            return length == len(parts) or parts[length] in defined(module)
    return False


def defined(module: Path) -> set[str]:
    """The names that a module defines or assigns at its top."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    assert [path for path in sorted(named_paths(page)) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_exists(page: Path) -> None:
    assert [name for name in sorted(named_modules(page)) if not is_module_or_member(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


def test_files_and_modules_are_found_in_the_pages() -> None:
    """The patterns above find something: what they check is not empty."""
    assert {"infra/kubernetes/", "streams/"} <= {path for page in PAGES for path in named_paths(page)}
    assert "trainers.job" in {name for page in PAGES for name in named_modules(page)}
    assert exists("tests/unit/test_docs.py")
    assert not exists("streams/intake.py")
    assert is_module_or_member("foldtune.client.client.FoldtuneClient")
    assert not is_module_or_member("streams.worker.intake")
    assert not is_module_or_member("foldtune.client.client.Missing")


BOUND = re.compile(r"^\| [^|]+ \| `?([\w.]*)`? \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


def written(value: object) -> str:
    """A bound as the README writes it."""
    match value:
        case timedelta():
            return f"{value.days} days" if value.days else f"{value.seconds // 60} minutes"
        case int() if value % (1 << 20) == 0:
            return f"{value >> 20} MiB"
        case int() if value % 1024 == 0:
            return f"{value >> 10} KiB"
        case _:
            return f"{value:,}"


def test_the_readme_has_every_bound_of_data_with_its_default() -> None:
    table = (ROOT / "README.md").read_text().partition("## Bounds\n")[2].partition("\n## ")[0]
    shown = dict(BOUND.findall(table))
    assert shown.pop("setting") == "default"
    assert shown.pop("none") == written(MAX_ENVELOPE_LOGS)
    sections: tuple[tuple[str, BaseModel, type[BaseModel]], ...] = (
        ("bounds", Bounds(), Bounds),
        ("sets", SetLimits(), SetLimits),
    )
    assert shown == {
        f"{name}.{field}": written(getattr(section, field))
        for name, section, kind in sections
        for field in kind.model_fields
    }


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    command = [str(shutil.which("make")), "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^make (\S+)", shown, re.MULTILINE)) == sorted(targets)


def test_figures_name_command_machine_date_commit_and_code() -> None:
    found = [source for page in DOCS for source in sources(page)]
    assert found
    for source in found:
        assert source.paths, source
        assert all((ROOT / path).exists() for path in source.paths), source
        # A commit that is no ancestor is an error of git's.
        assert source.changes >= 0
    sections = re.split(r"^(?=## )", (ROOT / "docs" / "performance.md").read_text(), flags=re.MULTILINE)
    assert [
        section.splitlines()[0] for section in sections if "|---" in section and "\nMeasured: " not in section
    ] == []
