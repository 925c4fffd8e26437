"""Who may import whom. The tables are those of ``docs/architecture.md``, which a test compares."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of each package: the packages, or modules, that it may import beside itself.
PACKAGES: dict[str, frozenset[str]] = {
    "foldtune": frozenset(),
    "streams": frozenset({"foldtune"}),
    "trainers": frozenset({"foldtune"}),
    "launchers": frozenset({"foldtune", "trainers.environment", "trainers.exit_codes"}),
    "notifications": frozenset({"foldtune"}),
    "console": frozenset({"foldtune"}),
    "api": frozenset({"foldtune", "streams", "launchers", "console"}),
    "infra": frozenset({"foldtune", "streams", "launchers", "api"}),
    "demo": frozenset({"foldtune", "streams", "trainers", "launchers", "infra", "api"}),
}
# Inside a package each file or folder may import those before it.
LAYERS: dict[str, tuple[str, ...]] = {
    "streams": (
        "errors",
        "metrics",
        "threads",
        "partitions",
        "publishing",
        "training_sets",
        "snapshots",
        "requests",
        "worker",
        "commands",
    ),
    "trainers": (
        "exit_codes",
        "environment",
        "errors",
        "retrying_store",
        "role",
        "model",
        "data",
        "evaluation",
        "engine",
        "loop",
        "publishing",
        "preview",
        "pipeline",
        "job",
        "torchrun",
        "commands",
    ),
    "launchers": (
        "port",
        "run_outcomes",
        "periodic",
        "ledger",
        "ownership",
        "heartbeats",
        "ended_requests",
        "base_model",
        "execution",
        "job_consumer",
        "local",
        "batch",
        "commands",
    ),
    "console": ("sessions", "oidc", "api_client", "knobs", "assets", "context", "rendering", "sign_in", "pages", "app"),
    "notifications": ("metrics", "notices", "webhook", "delivery", "notifier", "commands"),
    "foldtune": (
        "excerpts",
        "spellings",
        "durations",
        "knobs",
        "policy",
        "topics",
        "object_keys",
        "digests",
        "snapshot_schema",
        "texts",
        "pairs",
        "events",
        "request_ids",
        "errors",
        "model_folder",
        "model_weights",
        "bounds",
        "reasons",
        "status_order",
        "reviews",
        "shutdown",
        "in_flight",
        "work_folders",
        "settings",
        "acls",
        "logs",
        "object_store",
        "secrets",
        "compression",
        "tokens",
        "kafka",
        "topic_admin",
        "reports",
        "dead_letters",
        "topic_reader",
        "testing",
        "client",
        "commands",
        "cli",
    ),
}
# Who may import a heavy library: the package that is built on it, and the demo.
LIBRARIES: dict[str, frozenset[str]] = {
    "torch": frozenset({"trainers", "demo"}),
    "safetensors": frozenset({"trainers", "demo"}),
    "onnxruntime": frozenset({"trainers", "demo"}),
    "scipy": frozenset({"trainers", "demo"}),
    "transformers": frozenset({"trainers", "demo"}),
    "sentence_transformers": frozenset({"trainers", "demo"}),
    "faust": frozenset({"streams"}),
    "mode": frozenset({"streams"}),
    "rocksdict": frozenset({"streams"}),
}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, at its top, in a function or for the type checker."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            # An imported name may be a module of the package.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "node_modules" not in path.parts)


def within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    for path in modules(package):
        for module in imports(path):
            target = module.partition(".")[0]
            if target not in PACKAGES or target == package or not is_module(module):
                continue
            allowed = PACKAGES[package]
            # "trainers" itself is named by what imports "trainers.exit_codes" from it.
            parts = any(within(module, other) or within(other, module) for other in allowed)
            assert parts, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", LAYERS)
def test_the_folders_of_a_package_import_only_those_below(package: str) -> None:
    order = LAYERS[package]
    for path in modules(package):
        layer = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if layer in {"__init__", "__main__"}:
            continue
        assert layer in order, f"{path.relative_to(ROOT)} has no place in the layers"
        for module in imports(path):
            head, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if head == package and target in order:
                assert order.index(target) <= order.index(layer), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_heavy_library_is_imported_only_in_its_package(library: str) -> None:
    for package in PACKAGES:
        if package in LIBRARIES[library]:
            continue
        for path in modules(package):
            assert not any(within(module, library) for module in imports(path)), path.relative_to(ROOT)


def test_every_package_has_a_docstring() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path.relative_to(ROOT)


def test_the_page_shows_the_same_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.+?) \|$", page, re.MULTILINE))
    assert set(rows) == set(PACKAGES)
    for package, allowed in PACKAGES.items():
        assert set(re.findall(r"`([\w.]+)`", rows[package])) == allowed, package


def test_the_page_shows_the_same_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package, order in LAYERS.items():
        (row,) = re.findall(rf"^\| `{package}` \| (.+?) \|$", page, re.MULTILINE)
        assert tuple(re.findall(r"`(\w+)`", row)) == order
